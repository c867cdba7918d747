"""The web page and the HTTP API of a model, as an ASGI application.

It calls the model through one function, `SegmentImage`. Responses refer to no other host: scripts,
styles and the API's description are served from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ray_jobs.serving import api
from ray_jobs.serving.auth import require_token
from ray_jobs.serving.budget import UploadMemory
from segan.errors import RejectedError
from segan.inference.masks import encode_mask
from segan.inference.view import ImageSegmentation
from segan.utils.html import render
from segan.utils.labels import MAX_NAME_LENGTH

# (file name, content, whether a preview is needed) -> the segmentation of the image.
# It is valid inside the block, which holds the memory for it.
SegmentImage = Callable[[str, bytes, bool], AbstractAsyncContextManager[ImageSegmentation]]
# (function, *arguments) -> its result, computed in a thread.
RunInThread = Callable[..., Awaitable[Any]]

_ASSETS = {
    "icon.svg": "image/svg+xml",
    "contour.js": "text/javascript",
    "page.css": "text/css",
    "page.js": "text/javascript",
}
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # images and masks show patients
}


def create_app(
    segment_image: SegmentImage,
    run_in_thread: RunInThread,
    model_info: api.ModelInfo,
    token_digest: str = "",
    allowed_hosts: Sequence[str] = (),
) -> FastAPI:
    """The ASGI application.

    Args:
        segment_image: raises RejectedError if the content is not a usable image.
        token_digest: of the token that `/v1` requires; "" if it requires none.
        allowed_hosts: the names in a request's Host header; () for any. Without a token they keep
            out the pages of other sites, to which a browser resolves a name of their own.
    """
    app = FastAPI(title="SegAN", version="1", docs_url=None, redoc_url=None)
    auth: dict[str, Any] = {"dependencies": [Depends(require_token(token_digest))]}
    upload_route = auth | {"openapi_extra": api.UPLOAD_OPENAPI}
    uploads = UploadMemory(api.MAX_HELD_BYTES)
    chosen_class = Depends(_require_class([one.name for one in model_info.classes]))

    @asynccontextmanager
    async def segment_upload(request: Request, preview: bool) -> AsyncIterator[ImageSegmentation]:
        with uploads.hold() as count_bytes:
            name, content = await _read_upload(request, count_bytes)
            async with segment_image(name, content, preview) as segmentation:
                yield segmentation

    @app.get("/v1/model", responses=api.MODEL_RESPONSES, **auth)
    async def model() -> api.ModelInfo:
        """The model and the limits of an upload."""
        return model_info

    @app.post("/v1/segment", responses=api.SEGMENT_RESPONSES, response_model=None, **upload_route)
    async def segment(
        request: Request,
        threshold: api.Threshold = None,
        format: api.Format = None,
        class_name: str = chosen_class,
    ) -> Response:
        """The mask of the lesion, or of a class, as PNG, or its areas and contour as JSON."""
        async with segment_upload(request, preview=False) as segmentation:
            found = segmentation.of_class(class_name)
            if (format or _preferred_format(request)) == "json":
                return _json_response(await run_in_thread(found.to_contour, threshold))
            content = await run_in_thread(lambda: encode_mask(found.mask(threshold)))
            return Response(content, media_type="image/png")

    @app.post("/v1/view", responses=api.VIEW_RESPONSES, **upload_route)
    async def view(
        request: Request, threshold: api.Threshold = None, class_name: str = chosen_class
    ) -> Response:
        """Everything the page shows: preview, probability maps, and the area per threshold."""
        async with segment_upload(request, preview=True) as segmentation:
            found = segmentation.of_class(class_name)
            return _json_response(await run_in_thread(found.to_view, threshold))

    @app.exception_handler(RejectedError)
    async def reject(_: Request, error: RejectedError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[..., Any]) -> Response:
        response: Response = await call_next(request)
        response.headers.update(_SECURITY_HEADERS)
        return response

    if allowed_hosts:
        app.add_middleware(
            TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False
        )
    _add_public_routes(app, bool(token_digest))
    return app


def _require_class(names: Sequence[str]) -> Callable[..., str]:
    """A FastAPI dependency: the name of the class that a request asks for.

    It responds 422 to an unknown class, or to none if there are several.
    """

    def choose(found: api.ClassName = None) -> str:
        if found is None and len(names) == 1:
            return names[0]
        if found is None or found not in names:
            shown = "none" if found is None else repr(found[:MAX_NAME_LENGTH])
            raise HTTPException(422, f"class: expected one of {', '.join(names)}, found {shown}")
        return found

    return choose


def _add_public_routes(app: FastAPI, needs_token: bool) -> None:
    """Adds the routes without a token: the page, the API's description and the health checks."""

    def add(path: str, content: str, media_type: str) -> None:
        async def get() -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, get, methods=["GET", "HEAD"], include_in_schema=False)

    for name, media_type in _ASSETS.items():
        add(f"/{name}", _read_asset(name), media_type)
    # Served by a replica, which accepts requests only after it has loaded the model.
    for path in ("/healthz", "/readyz"):
        add(path, "ok\n", "text/plain")
    folder = "ray_jobs/serving/page"
    add("/", render(f"{folder}/page.html.j2", needs_token=needs_token), "text/html")
    add("/docs", render(f"{folder}/docs.html.j2", api=app.openapi()), "text/html")


async def _read_upload(request: Request, count_bytes: Callable[[int], None]) -> tuple[str, bytes]:
    """The file name and content of the image in a request's form or body.

    Args:
        count_bytes: called with the number of bytes of each part that arrives.

    Raises:
        HTTPException: 408 if the upload is slower than MIN_BYTES_PER_S, 413 as soon as it is known
            to be too large, 422 without an image.
    """
    too_large = HTTPException(413, f"expected at most {api.MAX_BYTES} bytes, found more")
    if int(request.headers.get("content-length", 0)) > api.MAX_BYTES:
        raise too_large
    received, loop = 0, asyncio.get_running_loop()
    started_at = loop.time()

    async def receive() -> Any:
        nonlocal received
        deadline = started_at + api.BODY_GRACE_S + received / api.MIN_BYTES_PER_S
        try:
            async with asyncio.timeout_at(deadline):
                message = await request.receive()
        except TimeoutError:
            raise HTTPException(
                408, f"expected at least {api.MIN_BYTES_PER_S} bytes per second, found fewer"
            ) from None
        size = len(message.get("body", b""))
        received += size
        if received > api.MAX_BYTES:
            raise too_large
        count_bytes(size)
        return message

    limited = Request(request.scope, receive)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return "the image", await limited.body()
    parser = _InMemoryParser(limited.headers, limited.stream(), max_files=1, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    try:
        file = form.get(api.FORM_FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(
                422, f"expected a file in form field {api.FORM_FIELD!r}, found none"
            )
        return file.filename or "the image", await file.read()
    finally:
        await form.close()


class _InMemoryParser(MultiPartParser):
    """Keeps files in memory: Starlette's own writes those above 1 MB to a disk for a moment."""

    spool_max_size = api.MAX_BYTES + 1


def _preferred_format(request: Request) -> str:
    accept = request.headers.get("accept", "")
    return "json" if "application/json" in accept and "image/png" not in accept else "png"


def _json_response(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def _read_asset(name: str) -> str:
    return files("ray_jobs").joinpath("serving", "page", name).read_text(encoding="utf-8")

"""The page and the HTTP API over a model, as an ASGI application.

What it asks of the model is one call, `Read`. No answer names another host: script, style and the
API's description come from here.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from segan.data.archive.images import FORMATS, MAX_PIXELS, RejectedError
from segan.errors import UsageError
from segan.inference.masks import encode_mask
from segan.inference.view import ContourResponse, Dimensions, ImageSegmentation, ViewResponse
from segan.utils.html import render

TOKEN_VARIABLE = "SEGAN_SERVE_TOKEN"  # noqa: S105  the variable's name
MIN_TOKEN_LENGTH = 16  # characters of a token that nobody guesses
MAX_BYTES = 32 * 2**20
FORM_FIELD = "image"  # of a form

# Its file name, its content, and whether it is to be seen, to what the model makes of an image.
SegmentImage = Callable[[str, bytes, bool], Awaitable[ImageSegmentation]]
# Calls a function with an argument where it does not keep others waiting.
RunInThread = Callable[..., Awaitable[Any]]

_ASSETS = {
    "icon.svg": "image/svg+xml",
    "outline.js": "text/javascript",
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
    "Cache-Control": "no-store",  # pictures and masks are of people
}
_BINARY = {"type": "string", "format": "binary"}
_UPLOAD_OPENAPI = {
    "requestBody": {
        "required": True,
        "description": f"An image ({', '.join(FORMATS)}): the body, or form field `{FORM_FIELD}`.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FORM_FIELD],
                    "properties": {FORM_FIELD: _BINARY},
                }
            },
            "image/*": {"schema": _BINARY},
        },
    }
}
_ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing, or another."},
    408: {"description": "It took longer than the server allows."},
    413: {"description": f"More than {MAX_BYTES} bytes."},
    422: {"description": "No image that can be used; `detail` says why."},
    503: {"description": "Too many wait already."},
}
_MASK_RESPONSE: dict[str, Any] = {
    "description": "The mask at the image's size, 0 or 255; or its areas and contour.",
    "content": {"image/png": {"schema": _BINARY}},
    "model": ContourResponse,
}
_MODEL_RESPONSE = {"description": "Its name, threshold and frame."}
_VIEW_RESPONSE: dict[str, Any] = {
    "description": "Those figures, and what is drawn.",
    "model": ViewResponse,
}

Threshold = Annotated[
    float | None,
    Query(gt=0, lt=1, description="Above it is lesion; else the model's own."),
]
Format = Annotated[
    Literal["png", "json"] | None,
    Query(description="`png` or `json`; else as `Accept`, else `png`."),
]


class ModelInfo(BaseModel):
    """The model, and what may be sent to it."""

    model: str
    threshold: float = Field(description="The model's own.")
    num_members: int
    input_size: Dimensions = Field(description="What the model sees of an image, in pixels.")
    formats: tuple[str, ...] = FORMATS
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS


def digest(token: str) -> str:
    """What is kept of a token: enough to know it again, not to use it."""
    return hashlib.sha256(token.encode()).hexdigest()


def configured_token_digest() -> str:
    """Of the environment's token, or "" where there is none; raises UsageError for a short one."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()  # of a file it has a line end
    if token and len(token) < MIN_TOKEN_LENGTH:
        raise UsageError(
            f"{TOKEN_VARIABLE}: expected {MIN_TOKEN_LENGTH} characters or more, found "
            f"{len(token)}; "
            "`openssl rand -hex 32` makes one"
        )
    return digest(token) if token else ""


def create_app(
    segment_image: SegmentImage, run_in_thread: RunInThread, model_info: ModelInfo, token: str = ""
) -> FastAPI:
    """The application.

    Args:
        read: raises RejectedError where it is given no image.
        token: the digest of what `/v1` asks for; "" where it asks for nothing.
    """
    app = FastAPI(title="SegAN", version="1", docs_url=None, redoc_url=None)
    auth: dict[str, Any] = {"dependencies": [Depends(_require_token(token))]}
    upload_route = auth | {"openapi_extra": _UPLOAD_OPENAPI}

    model_docs: dict[str, Any] = {"responses": {200: _MODEL_RESPONSE, 401: _ERROR_RESPONSES[401]}}

    @app.get("/v1/model", **auth | model_docs)
    async def model() -> ModelInfo:
        """Which model this is, and the limits."""
        return model_info

    @app.post(
        "/v1/segment",
        responses=_ERROR_RESPONSES | {200: _MASK_RESPONSE},
        response_model=None,
        **upload_route,
    )
    async def segment(
        request: Request, threshold: Threshold = None, format: Format = None
    ) -> Response:
        """The mask of the lesion as PNG, or its areas and contour as JSON."""
        reading = await segment_image(*await _read_upload(request), False)
        if (format or _preferred_format(request)) == "json":
            return _json_response(await run_in_thread(reading.to_contour, threshold))
        content = await run_in_thread(lambda: encode_mask(reading.mask(threshold)))
        return Response(content, media_type="image/png")

    @app.post("/v1/view", responses=_ERROR_RESPONSES | {200: _VIEW_RESPONSE}, **upload_route)
    async def view(request: Request, threshold: Threshold = None) -> Response:
        """All that the page shows: the picture, the maps, and the area at every threshold."""
        reading = await segment_image(*await _read_upload(request), True)
        return _json_response(await run_in_thread(reading.to_view, threshold))

    @app.exception_handler(RejectedError)
    async def refuse(_: Request, error: RejectedError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    @app.middleware("http")
    async def add_headers(request: Request, call: Callable[..., Any]) -> Response:
        response: Response = await call(request)
        response.headers.update(_SECURITY_HEADERS)
        return response

    _add_public_routes(app, bool(token))
    return app


def _require_token(expected_digest: str) -> Callable[..., None]:
    scheme = HTTPBearer(auto_error=False, description="Where the server was started with one.")

    def check(given: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008
        if expected_digest and not (
            given and hmac.compare_digest(digest(given.credentials), expected_digest)
        ):
            found = "another" if given else "none"
            raise HTTPException(
                401, f"expected the server's token, found {found}", {"WWW-Authenticate": "Bearer"}
            )

    return check


def _add_public_routes(app: FastAPI, needs_token: bool) -> None:
    """What needs no token: the page, the API's description, and whether the server is well."""

    def add(path: str, content: str, media_type: str) -> None:
        async def get() -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, get, include_in_schema=False)

    for name, media_type in _ASSETS.items():
        add(f"/{name}", _read_asset(name), media_type)
    # Answered by a replica, which takes requests only once it holds the model.
    for path in ("/healthz", "/readyz"):
        add(path, "ok\n", "text/plain")
    folder = "ray_jobs/serving/page"
    add("/", render(f"{folder}/page.html.j2", guarded=needs_token), "text/html")
    add("/docs", render(f"{folder}/docs.html.j2", api=app.openapi()), "text/html")


async def _read_upload(request: Request) -> tuple[str, bytes]:
    """The name and the content of the image in a request's form or body.

    Raises HTTPException where it is larger than it may be, as soon as that is known.
    """
    too_large = HTTPException(413, f"expected at most {MAX_BYTES} bytes, found more")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    received = 0

    async def receive() -> Any:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > MAX_BYTES:
            raise too_large
        return message

    limited = Request(request.scope, receive)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return "the image", await limited.body()
    async with limited.form(max_files=1, max_fields=8) as form:
        file = form.get(FORM_FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(
                422, f"expected a file in the form's field {FORM_FIELD}, found none"
            )
        return file.filename or "the image", await file.read()


def _preferred_format(request: Request) -> str:
    accept = request.headers.get("accept", "")
    return "json" if "application/json" in accept and "image/png" not in accept else "png"


def _json_response(model: BaseModel) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")


def _read_asset(name: str) -> str:
    return files("ray_jobs").joinpath("serving", "page", name).read_text(encoding="utf-8")

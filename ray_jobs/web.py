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

import jinja2
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from segan.data.images import FORMATS, MAX_PIXELS, RejectedError
from segan.errors import UsageError
from segan.inference.masks import encode_mask
from segan.inference.view import Outlined, Reading, Size, View

TOKEN = "SEGAN_SERVE_TOKEN"  # noqa: S105  the variable's name
SHORTEST = 16  # characters of a token that nobody guesses
MAX_BYTES = 32 * 2**20
FIELD = "image"  # of a form

# Its file name, its content, and whether it is to be seen, to what the model makes of an image.
Read = Callable[[str, bytes, bool], Awaitable[Reading]]
# Calls a function with an argument where it does not keep others waiting.
Aside = Callable[..., Awaitable[Any]]

_ASSETS = {
    "icon.svg": "image/svg+xml",
    "outline.js": "text/javascript",
    "page.css": "text/css",
    "page.js": "text/javascript",
}
_HEADERS = {
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
_UPLOAD = {
    "requestBody": {
        "required": True,
        "description": f"An image ({', '.join(FORMATS)}): the body, or a form's field `{FIELD}`.",
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": [FIELD], "properties": {FIELD: _BINARY}}
            },
            "image/*": {"schema": _BINARY},
        },
    }
}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing, or another."},
    408: {"description": "It took longer than the server allows."},
    413: {"description": f"More than {MAX_BYTES} bytes."},
    422: {"description": "No image that can be used; `detail` says why."},
    503: {"description": "Too many wait already."},
}
_MASK: dict[str, Any] = {
    "description": "The mask at the image's size, 0 or 255; or its areas and contour.",
    "content": {"image/png": {"schema": _BINARY}},
    "model": Outlined,
}
_TOLD = {"description": "Its name, threshold and frame."}
_SEEN: dict[str, Any] = {"description": "Those figures, and what is drawn.", "model": View}

Threshold = Annotated[
    float | None,
    Query(gt=0, lt=1, description="Above it is lesion; else the model's own."),
]
Format = Annotated[
    Literal["png", "json"] | None,
    Query(description="`png` or `json`; else as `Accept`, else `png`."),
]


class About(BaseModel):
    """The model, and what may be sent to it."""

    model: str
    threshold: float = Field(description="The model's own.")
    members: int
    frame: Size = Field(description="What the model sees of an image, in pixels.")
    formats: tuple[str, ...] = FORMATS
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS


def digest(token: str) -> str:
    """What is kept of a token: enough to know it again, not to use it."""
    return hashlib.sha256(token.encode()).hexdigest()


def token_digest() -> str:
    """Of the environment's token, or "" where there is none; raises UsageError for a short one."""
    token = os.environ.get(TOKEN, "").strip()  # of a file it has a line end
    if token and len(token) < SHORTEST:
        raise UsageError(
            f"{TOKEN}: expected {SHORTEST} characters or more, found {len(token)}; "
            "`openssl rand -hex 32` makes one"
        )
    return digest(token) if token else ""


def build_app(read: Read, aside: Aside, about: About, token: str = "") -> FastAPI:
    """The application.

    Args:
        read: raises RejectedError where it is given no image.
        token: the digest of what `/v1` asks for; "" where it asks for nothing.
    """
    app = FastAPI(title="SegAN", version="1", docs_url=None, redoc_url=None)
    guarded: dict[str, Any] = {"dependencies": [Depends(_guard(token))]}
    posted = guarded | {"openapi_extra": _UPLOAD}

    told: dict[str, Any] = {"responses": {200: _TOLD, 401: _REFUSALS[401]}}

    @app.get("/v1/model", **guarded | told)
    async def model() -> About:
        """Which model this is, and the limits."""
        return about

    @app.post("/v1/segment", responses=_REFUSALS | {200: _MASK}, response_model=None, **posted)
    async def segment(
        request: Request, threshold: Threshold = None, format: Format = None
    ) -> Response:
        """The mask of the lesion as PNG, or its areas and contour as JSON."""
        reading = await read(*await _upload(request), False)
        if (format or _accepted(request)) == "json":
            return _json(await aside(reading.outlined, threshold))
        content = await aside(lambda: encode_mask(reading.mask(threshold)))
        return Response(content, media_type="image/png")

    @app.post("/v1/view", responses=_REFUSALS | {200: _SEEN}, **posted)
    async def view(request: Request, threshold: Threshold = None) -> Response:
        """All that the page shows: the picture, the maps, and the area at every threshold."""
        reading = await read(*await _upload(request), True)
        return _json(await aside(reading.view, threshold))

    @app.exception_handler(RejectedError)
    async def refuse(_: Request, error: RejectedError) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    @app.middleware("http")
    async def add_headers(request: Request, call: Callable[..., Any]) -> Response:
        response: Response = await call(request)
        response.headers.update(_HEADERS)
        return response

    _add_pages(app, bool(token))
    return app


def _guard(token: str) -> Callable[..., None]:
    scheme = HTTPBearer(auto_error=False, description="Where the server was started with one.")

    def check(given: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008
        if token and not (given and hmac.compare_digest(digest(given.credentials), token)):
            found = "another" if given else "none"
            raise HTTPException(
                401, f"expected the server's token, found {found}", {"WWW-Authenticate": "Bearer"}
            )

    return check


def _add_pages(app: FastAPI, guarded: bool) -> None:
    """What needs no token: the page, the API's description, and whether the server is well."""

    def add(path: str, content: str, media_type: str) -> None:
        async def get() -> Response:
            return Response(content, media_type=media_type)

        app.add_api_route(path, get, include_in_schema=False)

    for name, media_type in _ASSETS.items():
        add(f"/{name}", _text(name), media_type)
    # Answered by a replica, which takes requests only once it holds the model.
    for path in ("/healthz", "/readyz"):
        add(path, "ok\n", "text/plain")
    templates = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page, docs = (templates.from_string(_text(f"{name}.html.j2")) for name in ("page", "docs"))
    add("/", page.render(guarded=guarded), "text/html")
    add("/docs", docs.render(api=app.openapi()), "text/html")


async def _upload(request: Request) -> tuple[str, bytes]:
    """The name and the content of the image in a request's form or body.

    Raises HTTPException where it is larger than it may be, as soon as that is known.
    """
    too_large = HTTPException(413, f"expected at most {MAX_BYTES} bytes, found more")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    taken = 0

    async def receive() -> Any:
        nonlocal taken
        message = await request.receive()
        taken += len(message.get("body", b""))
        if taken > MAX_BYTES:
            raise too_large
        return message

    limited = Request(request.scope, receive)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return "the image", await limited.body()
    async with limited.form(max_files=1, max_fields=8) as form:
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            raise HTTPException(422, f"expected a file in the form's field {FIELD}, found none")
        return file.filename or "the image", await file.read()


def _accepted(request: Request) -> str:
    accept = request.headers.get("accept", "")
    return "json" if "application/json" in accept and "image/png" not in accept else "png"


def _json(found: BaseModel) -> Response:
    return Response(found.model_dump_json(), media_type="application/json")


def _text(name: str) -> str:
    return files("ray_jobs").joinpath("page", name).read_text(encoding="utf-8")

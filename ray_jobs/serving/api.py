"""The HTTP API's limits, response bodies and OpenAPI descriptions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from segan.data.archive.images import FORMATS, MAX_PIXELS
from segan.inference.predictor import Predictor
from segan.inference.view import ContourResponse, Dimensions, ViewResponse
from segan.runs.checkpoint import short_name

MAX_BYTES = 32 * 2**20
MAX_HELD_BYTES = 64 * MAX_BYTES  # of all uploads at once
# An upload may take BODY_GRACE_S and the time that its bytes take at this rate.
BODY_GRACE_S, MIN_BYTES_PER_S = 10.0, 256 * 1024
FORM_FIELD = "image"

Threshold = Annotated[
    float | None,
    Query(
        gt=0,
        lt=1,
        description="Pixels with a higher probability are marked as lesion; default: the model's.",
    ),
]
ClassName = Annotated[
    str | None,
    Query(
        alias="class",
        description="The class to segment; needed if the model has several, see `/v1/model`.",
    ),
]
Format = Annotated[
    Literal["png", "json"] | None,
    Query(description="`png` or `json`; default: by the `Accept` header, else `png`."),
]


class ClassInfo(BaseModel):
    """A class that the model segments."""

    name: str
    threshold: float = Field(description="The class's decision threshold.")


class ModelInfo(BaseModel):
    """The model and the limits of an upload."""

    model: str
    threshold: float | None = Field(
        description="The model's decision threshold; null if it has several classes."
    )
    classes: list[ClassInfo] = Field(description="One or several; their masks may overlap.")
    num_members: int
    input_size: Dimensions = Field(description="Size in pixels that images are resized to.")
    formats: tuple[str, ...] = FORMATS
    max_bytes: int = MAX_BYTES
    max_pixels: int = MAX_PIXELS


def describe_model(predictor: Predictor) -> ModelInfo:
    """What `/v1/model` returns of a model."""
    width, height = predictor.frame_size
    pairs = zip(predictor.class_names, predictor.thresholds, strict=True)
    classes = [ClassInfo(name=name, threshold=threshold) for name, threshold in pairs]
    return ModelInfo(
        model=short_name(predictor.name),
        threshold=classes[0].threshold if len(classes) == 1 else None,
        classes=classes,
        num_members=len(predictor.members),
        input_size=Dimensions(width=width, height=height),
    )


_BINARY = {"type": "string", "format": "binary"}
UPLOAD_OPENAPI = {
    "requestBody": {
        "required": True,
        "description": f"An image ({', '.join(FORMATS)}) as the body or in form field "
        f"`{FORM_FIELD}`.",
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
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {"description": "Missing or invalid token."},
    408: {"description": "Request timed out, or was sent too slowly."},
    413: {"description": f"Image larger than {MAX_BYTES} bytes."},
    422: {"description": "Not a usable image; `detail` has the reason."},
    503: {"description": "Server overloaded."},
}
MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The model's name, threshold and input size."},
    401: ERROR_RESPONSES[401],
}
SEGMENT_RESPONSES = ERROR_RESPONSES | {
    200: {
        "description": "The mask at the image's size, 0 or 255; or areas and contour.",
        "content": {"image/png": {"schema": _BINARY}},
        "model": ContourResponse,
    }
}
VIEW_RESPONSES = ERROR_RESPONSES | {
    200: {"description": "Areas, probability maps and a preview.", "model": ViewResponse}
}

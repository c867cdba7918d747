"""What a person or a program is shown of one image: a mask as a file, figures, maps to look at."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field
from torch import Tensor

from segan.inference.contour import Ring, find_contours
from segan.inference.frames import mean_map, std_map
from segan.inference.predictor import Predictor
from segan.inference.region_stats import disagreement
from segan.inference.thresholds import THRESHOLDS

MAX_PREVIEW_SIDE = 1600  # pixels of a picture's longer side: enough for a screen
UINT16_MAX = 65535  # of a map's 16 bits


class Dimensions(BaseModel):
    width: int
    height: int


class MemberArea(BaseModel):
    threshold: float = Field(description="Of this member's own map.")
    area: int = Field(description="Pixels that are lesion to it alone.")


class SegmentationSummary(Dimensions):
    """Areas in pixels of the image, and how far the members agree."""

    threshold: float = Field(description="Probability above it is lesion.")
    area: int = Field(description="Pixels of the lesion.")
    area_fraction: float = Field(description="Of the image's pixels.")
    members: list[MemberArea]
    disagreement: float | None = Field(
        description="Of the pixels that are lesion to a member, the share that is not to all; "
        "null of one member."
    )


class MultiPolygon(BaseModel):
    """GeoJSON's. x goes right and y down; the first pixel's centre is (0.5, 0.5)."""

    type: Literal["MultiPolygon"] = "MultiPolygon"
    coordinates: list[list[Ring]]


class ContourResponse(SegmentationSummary):
    """With the mask's contour. A pixel's centre is inside of it just where the mask is lesion."""

    contour: MultiPolygon


class ViewResponse(SegmentationSummary):
    """With all that it takes to move the threshold without asking again.

    Between a map's pixels the probability runs bilinearly: its outlines are the image's.
    """

    thresholds: list[float] = Field(description="Rising; the model's own is among them.")
    areas: list[int] = Field(description="Of the mask at each threshold, at the image's size.")
    frame: Dimensions = Field(description="Of the maps.")
    probability: str = Field(
        description="Probability, 65535 for 1: 16 bits little-endian in base64."
    )
    member_probabilities: list[str] = Field(description="The members', in the same way.")
    uncertainty: str | None = Field(
        description="Standard deviation of the members' probabilities, in the same encoding; "
        "null for a single member."
    )
    preview: str = Field(description="The image as it was read, upright: a JPEG in base64.")


def encode_preview(image: Image.Image) -> str:
    """An image as a screen shows it, at most 1600 pixels long: a JPEG in base64."""
    small, sink = image.copy(), io.BytesIO()
    small.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE), Image.Resampling.BILINEAR)
    small.save(sink, "JPEG", quality=90)
    return _to_base64(sink.getvalue())


class ImageSegmentation:
    """What a model's members make of one image, which itself is no longer needed."""

    def __init__(self, predictor: Predictor, maps: Tensor, size: tuple[int, int], preview: str):
        """
        Args:
            maps: float32 [members, H, W], one image's of `Predictor.maps`.
            size: (width, height) in pixels of the image.
            picture: of `encode_picture`, for `view`; "" where it is not asked for.
        """
        self.predictor, self.maps, self.size, self.preview = predictor, maps, size, preview

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """bool [height, width] at a threshold, or at the model's own."""
        return self.predictor.postprocess(self.maps, self.size, threshold).mask

    def to_contour(self, threshold: float | None = None) -> ContourResponse:
        mask = self.mask(threshold)
        shape = MultiPolygon(coordinates=find_contours(mask))
        return ContourResponse(**self._summary_fields(mask, threshold), contour=shape)

    def to_view(self, threshold: float | None = None) -> ViewResponse:
        own = self.predictor.threshold
        thresholds = np.unique([*THRESHOLDS, own, own if threshold is None else threshold])
        probability = self.predictor.postprocess(self.maps, self.size).probability
        return ViewResponse(
            **self._summary_fields(self.mask(threshold), threshold),
            thresholds=thresholds.tolist(),
            areas=_areas_above(probability, thresholds),
            frame=Dimensions(width=self.maps.shape[2], height=self.maps.shape[1]),
            probability=_encode_map(mean_map(self.maps)),
            member_probabilities=[_encode_map(member) for member in self.maps],
            uncertainty=_encode_map(std_map(self.maps)) if len(self.maps) > 1 else None,
            preview=self.preview,
        )

    def _summary_fields(self, mask: np.ndarray, threshold: float | None) -> dict[str, Any]:
        masks = [one.mask for one in self.predictor.postprocess_members(self.maps, self.size)]
        return {
            "width": self.size[0],
            "height": self.size[1],
            "threshold": self.predictor.threshold if threshold is None else threshold,
            "area": int(mask.sum()),
            "area_fraction": float(mask.mean()),
            "members": [
                {"threshold": member.threshold, "area": int(one.sum())}
                for member, one in zip(self.predictor.members, masks, strict=True)
            ],
            "disagreement": disagreement(masks) if len(masks) > 1 else None,
        }


def _areas_above(probability: np.ndarray, thresholds: np.ndarray) -> list[int]:
    """How many pixels are above each of rising thresholds, compared in 32 bits as a mask's are."""
    bins = np.searchsorted(thresholds.astype(np.float32), probability.ravel(), side="left")
    counts = np.bincount(bins, minlength=len(thresholds) + 1)
    above: list[int] = counts[:0:-1].cumsum()[::-1].tolist()
    return above


def _encode_map(probability: Tensor) -> str:
    return _to_base64((probability.numpy() * UINT16_MAX).round().astype("<u2").tobytes())


def _to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

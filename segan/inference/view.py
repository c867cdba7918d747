"""The HTTP API's responses for one image: its mask, contour, areas and maps."""

from __future__ import annotations

import base64
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field
from torch import Tensor

from segan.inference.contour import Ring, find_contours
from segan.inference.frames import mean_map, std_map
from segan.inference.masks import UINT16_MAX
from segan.inference.predictor import Predictor, resize_maps
from segan.inference.region_stats import disagreement
from segan.inference.thresholds import THRESHOLDS, above_thresholds
from segan.utils.labels import find_class


class Dimensions(BaseModel):
    width: int
    height: int


class MemberArea(BaseModel):
    threshold: float = Field(description="For this member's own map.")
    area: int = Field(description="Pixels of this member's mask.")


class SegmentationSummary(Dimensions):
    """Areas in pixels of the image, and the disagreement of the members."""

    threshold: float = Field(description="A probability above it is lesion.")
    area: int = Field(description="Pixels of the mask.")
    area_fraction: float = Field(description="Fraction of the image's pixels in the mask.")
    members: list[MemberArea]
    disagreement: float | None = Field(
        description="1 - IoU of the members' masks: of the pixels in any of them, the fraction "
        "that is not in all; null for a single member."
    )


class MultiPolygon(BaseModel):
    """A GeoJSON MultiPolygon. x points right, y down; the first pixel's centre is (0.5, 0.5)."""

    type: Literal["MultiPolygon"] = "MultiPolygon"
    coordinates: list[list[Ring]]


class ContourResponse(SegmentationSummary):
    """Adds the mask's contour. A pixel's centre is inside if and only if it is in the mask."""

    contour: MultiPolygon


class ViewResponse(SegmentationSummary):
    """Adds the maps and the areas by threshold, so that a client can move the threshold itself.

    Maps interpolated bilinearly to the image's size are those that the masks are made from.
    """

    thresholds: list[float] = Field(description="Ascending; contains the model's threshold.")
    areas: list[int] = Field(
        description="Pixels of the mask at each threshold, at the image's size."
    )
    frame: Dimensions = Field(description="Size of the maps.")
    probability: str = Field(
        description="Probability map: base64 of little-endian uint16, 65535 for 1."
    )
    member_probabilities: list[str] = Field(description="The members' maps, in the same encoding.")
    uncertainty: str | None = Field(
        description="Standard deviation of the members' probabilities, in the same encoding; "
        "null for a single member."
    )
    preview: str = Field(description="The decoded, upright image: base64 of a JPEG.")


class ImageSegmentation:
    """The segmentation of one image by all members, of all classes."""

    def __init__(self, predictor: Predictor, maps: Tensor, size: tuple[int, int], preview: str):
        """
        Args:
            maps: float32 [members, classes, H, W], one item of `Predictor.predict_proba`.
            size: (width, height) of the image in pixels.
            preview: from `segan.inference.upload`; needed only for `to_view`.
        """
        self.predictor, self.maps, self.size, self.preview = predictor, maps, size, preview

    def of_class(self, name: str) -> ClassSegmentation:
        """The segmentation of one class; raises UsageError if there is no such class."""
        return ClassSegmentation(self, find_class(self.predictor.class_names, name))


class ClassSegmentation:
    """The segmentation of one class of an image.

    A method's `threshold` defaults to the model's of the class.
    """

    def __init__(self, image: ImageSegmentation, index: int):
        """
        Args:
            index: of the class.
        """
        self.size, self.preview = image.size, image.preview
        self.maps = image.maps[:, index]  # [members, H, W]
        self.threshold = image.predictor.thresholds[index]
        self.member_thresholds = [member.thresholds[index] for member in image.predictor.members]

    def mask(self, threshold: float | None = None) -> np.ndarray:
        """The mask, bool [height, width]."""
        return self._mask(mean_map(self.maps), self.threshold if threshold is None else threshold)

    def to_contour(self, threshold: float | None = None) -> ContourResponse:
        mask = self.mask(threshold)
        shape = MultiPolygon(coordinates=find_contours(mask))
        return ContourResponse(**self._summary_fields(mask, threshold), contour=shape)

    def to_view(self, threshold: float | None = None) -> ViewResponse:
        chosen = self.threshold if threshold is None else threshold
        thresholds = np.unique([*THRESHOLDS, self.threshold, chosen])
        probability = resize_maps(mean_map(self.maps)[None], self.size)[0]
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

    def _mask(self, probability: Tensor, threshold: float) -> np.ndarray:
        """The mask at the image's size of a frame's map [H, W]."""
        mask: np.ndarray = above_thresholds(resize_maps(probability[None], self.size), [threshold])[
            0
        ]
        return mask

    def _summary_fields(self, mask: np.ndarray, threshold: float | None) -> dict[str, Any]:
        members = list(zip(self.maps, self.member_thresholds, strict=True))
        masks = [self._mask(probability, own) for probability, own in members]
        return {
            "width": self.size[0],
            "height": self.size[1],
            "threshold": self.threshold if threshold is None else threshold,
            "area": int(mask.sum()),
            "area_fraction": float(mask.mean()),
            "members": [
                {"threshold": own, "area": int(member_mask.sum())}
                for own, member_mask in zip(self.member_thresholds, masks, strict=True)
            ],
            "disagreement": disagreement(masks) if len(masks) > 1 else None,
        }


def _areas_above(probability: np.ndarray, thresholds: np.ndarray) -> list[int]:
    """Number of pixels above each of ascending thresholds, compared in float32 as for masks."""
    bins = np.searchsorted(thresholds.astype(np.float32), probability.ravel(), side="left")
    counts = np.bincount(bins, minlength=len(thresholds) + 1)
    above: list[int] = counts[:0:-1].cumsum()[::-1].tolist()
    return above


def _encode_map(probability: Tensor) -> str:
    return _to_base64((probability.numpy() * UINT16_MAX).round().astype("<u2").tobytes())


def _to_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()

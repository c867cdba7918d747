"""Scores by kind of image: where a model is weak, and how sure that is with so few images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from segan.data.profile.image_stats import TONE_CATEGORIES, tone_category
from segan.evaluation.bootstrap import Interval, mean_interval

# Bands of the frame's share that a lesion covers, and of the skin's share that hair does: up to.
LESION_BANDS = ((0.02, "up to 2 %"), (0.05, "2 to 5 %"), (0.15, "5 to 15 %"), (0.4, "15 to 40 %"))
LARGEST_LESION = "above 40 %"
HAIR_BANDS = ((0.01, "up to 1 %"), (0.03, "1 to 3 %"))
MOST_HAIR = "above 3 %"
MIN_IMAGES = 5  # images that an interval can be drawn from

Row = Mapping[str, Any]


class Slice(BaseModel):
    """Some of the images.

    Attributes:
        jaccard: mean.
        low, high: between which 95 % of the bootstrap's means lie; None under `FEWEST` images.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    num_images: int
    jaccard: float
    low: float | None
    high: float | None


class SliceGroup(BaseModel):
    """All images, parted by one of their traits."""

    model_config = ConfigDict(frozen=True)

    attribute: str
    description: str
    slices: tuple[Slice, ...]


def slice_images(images: Sequence[Row]) -> tuple[SliceGroup, ...]:
    """The mean Jaccard by lesion size, border, skin tone and hair.

    Args:
        images: what `segan.evaluation.result.ImageScores` holds of each.
    """
    tones = [name for name, _ in TONE_CATEGORIES]
    return (
        _slice_group(
            "Lesion size",
            "share of the frame that the lesion covers",
            images,
            lambda image: (
                _band(image["lesion"], LESION_BANDS, LARGEST_LESION) if image["lesion"] else "none"
            ),
            ["none", *(name for _, name in LESION_BANDS), LARGEST_LESION],
        ),
        _slice_group(
            "Lesion and border",
            "whether the photograph cuts the lesion off",
            images,
            lambda image: "touches the border" if image["touches_border"] else "lies inside",
            ["lies inside", "touches the border"],
        ),
        _slice_group(
            "Estimated skin tone",
            "individual typology angle of the skin around the lesion",
            images,
            lambda image: "not told" if image["tone"] is None else tone_category(image["tone"]),
            [*tones, "not told"],
        ),
        _slice_group(
            "Hair",
            "share of the skin under dark, thin, long lines; rulers and pen marks count too",
            images,
            lambda image: _band(image["hair"], HAIR_BANDS, MOST_HAIR),
            [*(name for _, name in HAIR_BANDS), MOST_HAIR],
        ),
    )


def _slice_group(
    attribute: str,
    description: str,
    images: Sequence[Row],
    name_of_slice: Callable[[Row], str | None],
    names: Sequence[str],
) -> SliceGroup:
    """Slices in the order of `names`, without those that are empty."""
    jaccards: dict[str | None, list[float]] = {slice_name: [] for slice_name in names}
    for image in images:
        jaccards[name_of_slice(image)].append(image["jaccard"])
    slices = [_score_slice(str(each), values) for each, values in jaccards.items() if values]
    return SliceGroup(attribute=attribute, description=description, slices=tuple(slices))


def _score_slice(name: str, jaccards: Sequence[float]) -> Slice:
    mean = float(np.mean(jaccards))
    bounds: Interval | None = mean_interval(jaccards) if len(jaccards) >= MIN_IMAGES else None
    return Slice(
        name=name,
        num_images=len(jaccards),
        jaccard=mean,
        low=bounds.low if bounds else None,
        high=bounds.high if bounds else None,
    )


def _band(value: float, bands: Sequence[tuple[float, str]], above: str) -> str:
    return next((name for most, name in bands if value <= most), above)

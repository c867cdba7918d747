"""Scores by kind of image: where a model is weak, and how sure that is with so few images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from segan.data.traits import TONES, tone_name
from segan.evaluation.bootstrap import Interval, mean_interval

# Bands of the frame's share that a lesion covers, and of the skin's share that hair does: up to.
LESIONS = ((0.02, "up to 2 %"), (0.05, "2 to 5 %"), (0.15, "5 to 15 %"), (0.4, "15 to 40 %"))
LARGEST = "above 40 %"
HAIRS = ((0.01, "up to 1 %"), (0.03, "1 to 3 %"))
HAIRIEST = "above 3 %"
FEWEST = 5  # images that an interval can be drawn from

Row = Mapping[str, Any]


class Slice(BaseModel):
    """Some of the images.

    Attributes:
        jaccard: mean.
        low, high: between which 95 % of the bootstrap's means lie; None under `FEWEST` images.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    images: int
    jaccard: float
    low: float | None
    high: float | None


class Slicing(BaseModel):
    """All images, parted by one of their traits."""

    model_config = ConfigDict(frozen=True)

    by: str
    about: str
    slices: tuple[Slice, ...]


def slice_images(images: Sequence[Row]) -> tuple[Slicing, ...]:
    """The mean Jaccard by lesion size, border, skin tone and hair.

    Args:
        images: what `segan.evaluation.report.findings.Image` holds of each.
    """
    tones = [name for name, _ in TONES]
    return (
        _part(
            "Lesion size",
            "share of the frame that the lesion covers",
            images,
            lambda image: _band(image["lesion"], LESIONS, LARGEST) if image["lesion"] else "none",
            ["none", *(name for _, name in LESIONS), LARGEST],
        ),
        _part(
            "Lesion and border",
            "whether the photograph cuts the lesion off",
            images,
            lambda image: "touches the border" if image["touches_border"] else "lies inside",
            ["lies inside", "touches the border"],
        ),
        _part(
            "Estimated skin tone",
            "individual typology angle of the skin around the lesion",
            images,
            lambda image: "not told" if image["tone"] is None else tone_name(image["tone"]),
            [*tones, "not told"],
        ),
        _part(
            "Hair",
            "share of the skin under dark, thin, long lines; rulers and pen marks count too",
            images,
            lambda image: _band(image["hair"], HAIRS, HAIRIEST),
            [*(name for _, name in HAIRS), HAIRIEST],
        ),
    )


def _part(
    by: str,
    about: str,
    images: Sequence[Row],
    name: Callable[[Row], str | None],
    names: Sequence[str],
) -> Slicing:
    """Slices in the order of `names`, without those that are empty."""
    found: dict[str | None, list[float]] = {each: [] for each in names}
    for image in images:
        found[name(image)].append(image["jaccard"])
    slices = [_slice(str(each), values) for each, values in found.items() if values]
    return Slicing(by=by, about=about, slices=tuple(slices))


def _slice(name: str, jaccards: Sequence[float]) -> Slice:
    mean = float(np.mean(jaccards))
    bounds: Interval | None = mean_interval(jaccards) if len(jaccards) >= FEWEST else None
    return Slice(
        name=name,
        images=len(jaccards),
        jaccard=mean,
        low=bounds.low if bounds else None,
        high=bounds.high if bounds else None,
    )


def _band(value: float, bands: Sequence[tuple[float, str]], above: str) -> str:
    return next((name for most, name in bands if value <= most), above)

"""Slices of images by kind."""

from __future__ import annotations

from typing import Any

import pytest

from segan.evaluation.bootstrap import mean_interval
from segan.evaluation.slices import ImageScores, slice_images


def make_row(jaccard: float, **values: Any) -> ImageScores:
    defaults = {"lesion_fraction": 0.1, "touches_border": False, "ita": 45.0, "hair_fraction": 0.0}
    return ImageScores(id="", accuracy=1, dice=1, jaccard=jaccard, **defaults | values)


def slices_by_name(images: list[ImageScores], by: str) -> dict[str, Any]:
    slicing = next(one for one in slice_images(images) if one.attribute == by)
    return {one.name: one for one in slicing.slices}


def test_lesion_bands() -> None:
    images = [
        make_row(0.0, lesion_fraction=0.0),
        make_row(0.1, lesion_fraction=0.02),
        make_row(0.2, lesion_fraction=0.021),
        make_row(0.3, lesion_fraction=0.4),
        make_row(0.5, lesion_fraction=0.41),
        make_row(0.6, lesion_fraction=1.0),
    ]
    found = slices_by_name(images, "Lesion size")
    assert {name: (one.num_images, one.jaccard) for name, one in found.items()} == {
        "none": (1, 0.0),
        "up to 2 %": (1, 0.1),
        "2 to 5 %": (1, 0.2),
        "15 to 40 %": (1, 0.3),
        "above 40 %": (2, 0.55),
    }


def test_tone_border_and_hair() -> None:
    images = [
        make_row(0.2, ita=60.0, touches_border=True, hair_fraction=0.01),
        make_row(0.4, ita=None, hair_fraction=0.02),
        make_row(0.6, ita=-50.0, hair_fraction=0.5),
    ]
    assert [*slices_by_name(images, "Estimated skin tone")] == ["very light", "dark", "unknown"]
    border = slices_by_name(images, "Lesion and border")
    assert {name: one.jaccard for name, one in border.items()} == {
        "lies inside": 0.5,
        "touches the border": 0.2,
    }
    assert [*slices_by_name(images, "Hair")] == ["up to 1 %", "1 to 3 %", "above 3 %"]
    for slicing in slice_images(images):
        assert sum(one.num_images for one in slicing.slices) == 3


@pytest.mark.parametrize("count", [4, 5])
def test_interval_needs_min_images(count: int) -> None:
    scores = [0.1, 0.9, 0.5, 0.3, 0.7][:count]
    one = slices_by_name([make_row(score) for score in scores], "Hair")["up to 1 %"]
    expected = mean_interval(scores)
    assert (one.low, one.high) == ((expected.low, expected.high) if count == 5 else (None, None))

"""Slices: every image is in one of each kind, with the mean and interval of its like."""

from __future__ import annotations

from typing import Any

import pytest

from segan.evaluation.bootstrap import mean_interval
from segan.evaluation.report.slices import slice_images


def image(jaccard: float, **traits: Any) -> dict[str, Any]:
    plain = {"lesion": 0.1, "touches_border": False, "tone": 45.0, "hair": 0.0}
    return {"jaccard": jaccard} | plain | traits


def named(images: list[dict[str, Any]], by: str) -> dict[str, Any]:
    slicing = next(one for one in slice_images(images) if one.by == by)
    return {one.name: one for one in slicing.slices}


def test_every_band_has_its_images() -> None:
    images = [
        image(0.0, lesion=0.0),
        image(0.1, lesion=0.02),
        image(0.2, lesion=0.021),
        image(0.3, lesion=0.4),
        image(0.5, lesion=0.41),
        image(0.6, lesion=1.0),
    ]
    found = named(images, "Lesion size")
    assert {name: (one.images, one.jaccard) for name, one in found.items()} == {
        "none": (1, 0.0),
        "up to 2 %": (1, 0.1),
        "2 to 5 %": (1, 0.2),
        "15 to 40 %": (1, 0.3),
        "above 40 %": (2, 0.55),
    }


def test_tone_border_and_hair() -> None:
    images = [
        image(0.2, tone=60.0, touches_border=True, hair=0.01),
        image(0.4, tone=None, hair=0.02),
        image(0.6, tone=-50.0, hair=0.5),
    ]
    assert [*named(images, "Estimated skin tone")] == ["very light", "dark", "not told"]
    border = named(images, "Lesion and border")
    assert {name: one.jaccard for name, one in border.items()} == {
        "lies inside": 0.5,
        "touches the border": 0.2,
    }
    assert [*named(images, "Hair")] == ["up to 1 %", "1 to 3 %", "above 3 %"]
    for slicing in slice_images(images):
        assert sum(one.images for one in slicing.slices) == 3


@pytest.mark.parametrize("count", [4, 5])
def test_an_interval_needs_five_images(count: int) -> None:
    scores = [0.1, 0.9, 0.5, 0.3, 0.7][:count]
    one = named([image(score) for score in scores], "Hair")["up to 1 %"]
    expected = mean_interval(scores)
    assert (one.low, one.high) == ((expected.low, expected.high) if count == 5 else (None, None))

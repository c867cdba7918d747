"""Selection of cases, and outlines of masks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segan.evaluation.slices import ImageScores
from segan.report.cases import choose_cases, choose_disagreement_cases
from segan.utils.outline import outline_path


def make_scores(number: int, jaccard: float, disagreement: float | None = None) -> ImageScores:
    return ImageScores(
        id=f"i{number}",
        accuracy=0.9,
        dice=0.8,
        jaccard=jaccard,
        lesion_fraction=0.1,
        touches_border=False,
        ita=None,
        hair_fraction=0.0,
        disagreement=disagreement,
    )


def test_best_median_and_worst() -> None:
    images = [make_scores(i, i / 10) for i in range(9)]
    assert choose_cases(images, 2) == {"best": [8, 7], "median": [5, 4], "worst": [0, 1]}


@given(st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=1, max_size=30))
def test_no_image_is_shown_twice(jaccards: list[float]) -> None:
    chosen = choose_cases([make_scores(i, jaccard) for i, jaccard in enumerate(jaccards)])
    shown = [at for kind in chosen.values() for at in kind]
    assert len(shown) == len(set(shown))
    assert min(jaccards) == jaccards[chosen["worst"][0]]


def test_disagreement_cases() -> None:
    images = [make_scores(0, 0.5, 0.1), make_scores(1, 0.5, 0.0), make_scores(2, 0.5, 0.4)]
    assert choose_disagreement_cases(images) == [2, 0]


def test_outline_path_by_hand() -> None:
    # Two pixels side by side in the middle of 3 x 4, and one in the corner.
    mask = np.zeros((3, 4), bool)
    mask[1, 1:3] = mask[0, 3] = True
    assert parse_segments(outline_path(mask)) == {
        ("H", 1, 1, 4),  # above the two, and on below the corner
        ("H", 2, 1, 3),
        ("V", 1, 1, 2),
        ("V", 3, 0, 2),  # left of the corner, and on right of the two
    }


@pytest.mark.parametrize("value", [True, False])
def test_outline_path_leaves_out_the_frame_edge(value: bool) -> None:
    assert outline_path(np.full((3, 4), value)) == ""


@given(arrays(bool, (5, 6)))
def test_length_of_the_outline_path(mask: np.ndarray) -> None:
    edges = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
    assert sum(end - start for _, _, start, end in parse_segments(outline_path(mask))) == edges


def parse_segments(path: str) -> set[tuple[str, int, int, int]]:
    """(direction, row or column, start, end) of every segment of a path."""
    found = re.findall(r"M(\d+) (\d+)([HV])(\d+)", path)
    assert "".join(f"M{x} {y}{way}{end}" for x, y, way, end in found) == path
    return {
        (way, int(y), int(x), int(end)) if way == "H" else (way, int(x), int(y), int(end))
        for x, y, way, end in found
    }

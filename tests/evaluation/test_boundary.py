"""Perimeter and roughness by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.evaluation.boundary import perimeter, perimeter_ratio, roughness


def parse_mask(*rows: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


SQUARE = parse_mask("....", ".##.", ".##.", "....")  # 8 sides around 4 pixels
COMB = parse_mask("....", "#.#.", "###.", "....")  # 2 + 3 above, 3 below, 1 + 2 + 1 across


@pytest.mark.parametrize(
    ("found", "sides"),
    [
        (SQUARE, 8),
        (COMB, 3 + 3 + 3 + 1),  # down: 2 above the teeth, 1 in the gap, 3 below; across: 3 and 1
        (parse_mask("##", "##"), 0),  # the frame's edge is no outline
        (parse_mask("..", ".."), 0),
        (parse_mask("#.", ".."), 2),
        (parse_mask("#.", ".#"), 4),
    ],
)
def test_perimeter_by_hand(found: np.ndarray, sides: int) -> None:
    assert perimeter(found) == sides


def test_ratios_by_hand() -> None:
    two = np.stack([SQUARE, COMB])
    truth = np.stack([COMB, np.zeros_like(COMB)])
    np.testing.assert_allclose(perimeter_ratio(two, truth), [8 / 10, np.nan])
    # 8 / sqrt(4) over 10 / sqrt(5).
    np.testing.assert_allclose(roughness(two, truth), [4 / (10 / np.sqrt(5)), np.nan])
    np.testing.assert_array_equal(roughness(truth[1:], two[:1]), [np.nan])


@given(st.integers(1, 20), st.integers(1, 20))
def test_roughness_does_not_depend_on_size(one: int, other: int) -> None:
    def square(side: int) -> np.ndarray:
        return np.pad(np.ones((side, side), bool), ((1, 30 - side), (1, 30 - side)))

    assert roughness(square(one), square(other)) == pytest.approx(1)
    assert perimeter_ratio(square(one), square(other)) == pytest.approx(one / other)

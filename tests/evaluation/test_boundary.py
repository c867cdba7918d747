"""Perimeter, roughness and boundary distance by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.evaluation.boundary import (
    hausdorff_distance_95,
    perimeter,
    perimeter_ratio,
    roughness,
)


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


# The 95th percentile Hausdorff distance


def edge_points(mask: np.ndarray) -> list[tuple[int, int]]:
    """Pixels of the mask with a neighbour outside of it, also beyond the image."""
    padded = np.pad(mask, 1)
    return [
        (y, x)
        for y, x in np.argwhere(mask)
        if not all(padded[y + 1 + dy, x + 1 + dx] for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)))
    ]


def brute_force_distance(predicted: np.ndarray, truth: np.ndarray) -> float:
    edges = edge_points(predicted), edge_points(truth)
    directed = []
    for starts, ends in (edges, edges[::-1]):
        nearest = [min(np.hypot(y - v, x - u) for v, u in ends) for y, x in starts]
        directed.append(np.percentile(nearest, 95))
    return float(max(directed))


def test_distance_of_shifted_and_nested_squares() -> None:
    base = np.zeros((40, 50), bool)
    base[10:20, 10:20] = True
    assert hausdorff_distance_95(base, base) == 0
    assert hausdorff_distance_95(np.roll(base, 7, 1), base) == 7
    inner = np.zeros_like(base)
    inner[12:18, 12:18] = True
    # Every inner edge is 2 pixels from the outer one; from an outer corner it is 2 times sqrt(2).
    found = hausdorff_distance_95(inner, base)
    assert 2 <= found <= 2 * np.sqrt(2)
    assert found == pytest.approx(brute_force_distance(inner, base))


def test_distance_with_an_empty_mask() -> None:
    empty, one = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    one[1, 1] = True
    assert hausdorff_distance_95(empty, empty) == 0
    assert hausdorff_distance_95(empty, one) == hausdorff_distance_95(one, empty) == 5


@given(st.integers(0, 10_000))
def test_distance_equals_that_of_a_brute_force_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random((9, 12)) < rng.uniform(0.1, 0.9) for _ in range(2)]
    for mask in masks:
        mask[tuple(rng.integers(0, 9, 2))] = True
    found = hausdorff_distance_95(*masks)
    assert found == pytest.approx(brute_force_distance(*masks))
    assert found == hausdorff_distance_95(*reversed(masks))

"""Contours: closed rings from which the mask can be reconstructed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segan.inference.contour import find_contours


def fill_polygons(polygons: list[list[list[list[float]]]], shape: tuple[int, int]) -> np.ndarray:
    """The even-odd rule: a ray to the left crosses the rings an odd number of times."""
    inside = np.zeros(shape, bool)
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    for ring in (np.array(ring) for polygon in polygons for ring in polygon):
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            if y0 != y1:
                spans = (rows >= min(y0, y1)) & (rows < max(y0, y1))
                inside ^= spans & (x0 + (rows - y0) * (x1 - x0) / (y1 - y0) < columns)
    return inside


def test_a_square_has_its_corners_cut() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True  # pixels' centres from (1.5, 1.5) to (3.5, 2.5)
    (ring,) = find_contours(mask)[0]
    corners = {(1.5, 1), (3.5, 1), (4, 1.5), (4, 2.5), (3.5, 3), (1.5, 3), (1, 2.5), (1, 1.5)}
    assert {tuple(point) for point in ring} == corners
    assert ring[0] == ring[-1]
    assert len(ring) == 9


def test_a_full_mask_is_outlined_along_the_image_edge() -> None:
    (ring,) = find_contours(np.ones((2, 3), bool))[0]
    assert (min(x for x, _ in ring), max(x for x, _ in ring)) == (0, 3)
    assert (min(y for _, y in ring), max(y for _, y in ring)) == (0, 2)


def test_a_hole_is_a_ring_of_its_component() -> None:
    mask = np.ones((5, 9), bool)
    mask[2, 2] = False
    mask[:, 5] = False
    assert sorted(len(polygon) for polygon in find_contours(mask)) == [1, 2]


def test_an_empty_mask_has_no_contour() -> None:
    assert find_contours(np.zeros((3, 4), bool)) == []


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_the_mask_can_be_reconstructed(mask: np.ndarray) -> None:
    polygons = find_contours(mask)
    np.testing.assert_array_equal(fill_polygons(polygons, mask.shape), mask)
    points = [point for polygon in polygons for ring in polygon for point in ring]
    assert all(2 * x % 1 == 0 and 2 * y % 1 == 0 for x, y in points)


@pytest.mark.parametrize("offset", [(0, 0), (37, 11)], ids=str)
def test_a_contour_is_in_image_coordinates(offset: tuple[int, int]) -> None:
    mask = np.zeros((60, 60), bool)
    mask[offset[0] : offset[0] + 8, offset[1] : offset[1] + 20] = True
    np.testing.assert_array_equal(fill_polygons(find_contours(mask), mask.shape), mask)

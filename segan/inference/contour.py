"""The outline of a mask as polygons, for programs that draw or measure it."""

from __future__ import annotations

import contourpy
import numpy as np

Ring = list[list[float]]  # of [x, y], the last as the first


def find_contours(mask: np.ndarray) -> list[list[Ring]]:
    """The outlines of a mask's parts, as the coordinates of a GeoJSON MultiPolygon.

    The centre of a pixel lies inside of the polygons where the pixel is lesion, and outside where
    it is not, so the mask can be had back from them.

    Args:
        mask: bool [H, W].

    Returns:
        For each part its outer ring, then its holes' rings. x goes right and y down, in pixels from
        the image's upper left corner: the centre of the first pixel is (0.5, 0.5). Each coordinate
        is a multiple of one half.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # With skin all around, every ring is closed. The first of its pixels has its centre at -0.5.
    lines = contourpy.contour_generator(
        z=np.pad(part, 1).astype(np.float32), fill_type=contourpy.FillType.OuterOffset
    ).filled(0.5, 2.0)
    polygons = []
    for points, offsets in zip(*lines, strict=True):
        assert points is not None
        assert offsets is not None
        rings = np.split(points + np.array([left - 0.5, top - 0.5]), offsets[1:-1])
        polygons.append([_drop_collinear(ring).tolist() for ring in rings])
    return polygons


def _drop_collinear(ring: np.ndarray) -> np.ndarray:
    """A closed ring [N, 2] without the points on a straight line between two others."""
    steps = np.diff(ring, axis=0)
    turns = np.roll(steps, 1, axis=0)
    kept = ring[:-1][steps[:, 0] * turns[:, 1] != steps[:, 1] * turns[:, 0]]
    return np.concatenate([kept, kept[:1]])

"""The outline of a mask as polygons with closed rings, for programs that draw or measure it.

Outlines along pixel sides, as reports draw them, are in `segan.utils.outline`. This module needs
contourpy, which the extra `serve` installs.
"""

from __future__ import annotations

import contourpy
import numpy as np

Ring = list[list[float]]  # points [x, y]; the last equals the first


def find_contours(mask: np.ndarray) -> list[list[Ring]]:
    """The outlines of a mask's components, as the coordinates of a GeoJSON MultiPolygon.

    A pixel's centre is inside the polygons if and only if the pixel is in the mask, so the mask can
    be reconstructed from them.

    Args:
        mask: bool [H, W].

    Returns:
        For each component its outer ring, then the rings of its holes. x points right and y down,
        in pixels from the image's upper left corner: the first pixel's centre is (0.5, 0.5).
        Coordinates are multiples of 0.5.
    """
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    # Padding closes every ring, and puts the centre of the first pixel at -0.5.
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
    """A closed ring [N, 2] without the points on the straight line between their neighbours."""
    steps = np.diff(ring, axis=0)
    turns = np.roll(steps, 1, axis=0)
    corners = ring[:-1][steps[:, 0] * turns[:, 1] != steps[:, 1] * turns[:, 0]]
    return np.concatenate([corners, corners[:1]])

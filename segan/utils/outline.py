"""Outlines of masks along pixel sides: as edges, as pixels and as SVG paths.

The image border is never part of an outline: where it cuts a region, the outline stays open.
Polygons with closed rings are built by `segan.inference.contour`.
"""

from __future__ import annotations

import numpy as np


def boundary_edges(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixel sides between mask and background.

    Args:
        mask: bool [..., H, W].

    Returns:
        Horizontal sides, bool [..., H - 1, W], each below its pixel, and vertical sides,
        bool [..., H, W - 1], each to the right of its pixel.
    """
    return mask[..., 1:, :] != mask[..., :-1, :], mask[..., 1:] != mask[..., :-1]


def outline_mask(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask, bool [H, W], with a background pixel above, below, left or right."""
    horizontal, vertical = boundary_edges(mask)
    touches_edge = np.zeros_like(mask)
    touches_edge[:-1] |= horizontal
    touches_edge[1:] |= horizontal
    touches_edge[:, :-1] |= vertical
    touches_edge[:, 1:] |= vertical
    outline: np.ndarray = mask & touches_edge
    return outline


def outline_path(mask: np.ndarray) -> str:
    """The outline of a mask, bool [H, W], as an SVG path; a pixel is a unit square."""
    horizontal, vertical = boundary_edges(mask)
    lines = [f"M{start} {y}H{end}" for y, start, end in _edge_runs(horizontal)]
    lines += [f"M{x} {start}V{end}" for x, start, end in _edge_runs(vertical.T)]
    return "".join(lines)


def _edge_runs(edges: np.ndarray) -> list[tuple[int, int, int]]:
    """(row + 1, start, end) of each run of true in the rows of bool [N, M]."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [
        (int(row) + 1, int(start), int(end))
        for (row, start), (_, end) in zip(starts, ends, strict=True)
    ]

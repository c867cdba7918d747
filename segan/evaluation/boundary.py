"""Perimeter and roughness of a mask relative to the ground truth.

The paper claims that SegAN's label maps "have very smooth boundary" (section 3.1) without a
measure. Here the perimeter is the number of pixel sides between lesion and skin; the frame's edge
does not count.
"""

from __future__ import annotations

import numpy as np

from segan.utils.outline import boundary_edges


def perimeter(mask: np.ndarray) -> np.ndarray:
    """Number of pixel sides between lesion and skin, int [...], of masks bool [..., H, W]."""
    horizontal, vertical = boundary_edges(mask)
    length: np.ndarray = horizontal.sum((-2, -1)) + vertical.sum((-2, -1))
    return length


def perimeter_ratio(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Predicted perimeter / true perimeter, float [...]; NaN where the true perimeter is 0.

    Args:
        predicted, truth: bool [..., H, W].
    """
    return _ratio(perimeter(predicted), perimeter(truth))


def roughness(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Ratio of perimeter / sqrt(area), predicted over true, float [...].

    1 is as smooth as the truth and more is rougher, whatever the sizes. NaN where either perimeter
    is 0.

    Args:
        predicted, truth: bool [..., H, W].
    """
    predicted_ratio, truth_ratio = (
        _ratio(perimeter(mask), np.sqrt(mask.sum((-2, -1)))) for mask in (predicted, truth)
    )
    return _ratio(np.where(predicted_ratio > 0, predicted_ratio, np.nan), truth_ratio)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    ratio = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=np.asarray(denominator) > 0)
    return ratio

"""Boundaries of a mask and of the ground truth: distance, perimeter and roughness.

The paper claims that SegAN's label maps "have very smooth boundary" (section 3.1) without a
measure. Here the perimeter is the number of pixel sides between lesion and skin; the frame's edge
does not count.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from segan.utils.outline import boundary_edges


def perimeter(mask: np.ndarray) -> np.ndarray:
    """Number of pixel sides between lesion and skin, int [...], of masks bool [..., H, W]."""
    horizontal, vertical = boundary_edges(mask)
    length: np.ndarray = horizontal.sum((-2, -1)) + vertical.sum((-2, -1))
    return length


def _boundary_points(mask: np.ndarray) -> np.ndarray:
    """Rows and columns [points, 2] of a mask's pixels with a neighbour outside of it."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    corner = np.array([rows[0], columns[0]])  # the mask's own box is faster than a whole photograph
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    points: np.ndarray = np.argwhere(inside & ~binary_erosion(inside)) + corner
    return points


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


def hausdorff_distance_95(predicted: np.ndarray, truth: np.ndarray) -> float:
    """95th percentile Hausdorff distance (HD95) of two masks, in pixels.

    The boundary of a mask is its pixels with a neighbour (of four) outside of it, beyond the
    image's edge too. Of the distances from each boundary pixel of one mask to the nearest of the
    other, the 95th percentile is taken; of the two directions the larger, as in MONAI. 0 for two
    empty masks. For one empty mask there is no distance, and the image's diagonal is returned: a
    mean that left such images out would reward them.

    Args:
        predicted, truth: bool [H, W].
    """
    if not (predicted.any() and truth.any()):
        return 0.0 if predicted.any() == truth.any() else math.hypot(*truth.shape)
    points = [_boundary_points(mask) for mask in (predicted, truth)]
    distances = [KDTree(ends).query(starts)[0] for starts, ends in (points, reversed(points))]
    return max(float(np.percentile(directed, 95)) for directed in distances)

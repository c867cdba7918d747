"""How smooth a mask's outline is, beside that of the truth.

The paper says that SegAN's label maps "have very smooth boundary" (section 3.1) and gives no
figure. Here an outline's length is the number of sides between a lesion's pixel and one of skin;
the frame's own edge, where a lesion is cut off, is no outline.
"""

from __future__ import annotations

import numpy as np

from segan.utils.outline import boundary_edges


def perimeter(mask: np.ndarray) -> np.ndarray:
    """Sides between lesion and skin, int [...], of bool [..., H, W]."""
    horizontal, vertical = boundary_edges(mask)
    length: np.ndarray = horizontal.sum((-2, -1)) + vertical.sum((-2, -1))
    return length


def perimeter_ratio(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Predicted perimeter over the truth's, float [...]; NaN where the truth has no outline.

    Args:
        predicted, truth: bool [..., H, W].
    """
    return _ratio(perimeter(predicted), perimeter(truth))


def roughness(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The same of perimeters over the root of their areas, which a mask's size does not change.

    1 is as smooth as the truth, more is rougher; NaN where either has no outline.
    """
    predicted_ratio, truth_ratio = (
        _ratio(perimeter(mask), np.sqrt(mask.sum((-2, -1)))) for mask in (predicted, truth)
    )
    return _ratio(np.where(predicted_ratio > 0, predicted_ratio, np.nan), truth_ratio)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    out = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) > 0)

"""How many pixels a segmentor is all but certain of.

Where a probability is close to 0 or 1, the logistic passes almost no gradient: less than 0.01 of it
below SATURATED_LOW and above SATURATED_HIGH. Wrong pixels there are no longer learned from.
"""

from __future__ import annotations

from segan.evaluation.metrics import Confusion
from segan.inference.thresholds import threshold_index

SATURATED_LOW, SATURATED_HIGH = 0.01, 0.99


def saturation(pixels: Confusion, threshold: float) -> dict[str, float]:
    """Fractions of saturated pixels: p <= SATURATED_LOW or p > SATURATED_HIGH.

    Args:
        pixels: counts at each of THRESHOLDS, arrays [thresholds].
        threshold: that decides which pixels are wrong.

    Returns:
        saturated_fraction, of all pixels; wrong_saturated_fraction, of the wrong ones, 0 if none is
        wrong. Both in [0, 1].
    """
    low, high = threshold_index(SATURATED_LOW), threshold_index(SATURATED_HIGH)
    at = threshold_index(threshold)
    counts = pixels.stack()
    above_high, below_low = counts[:2, high].sum(), counts[2:, low].sum()
    false_positive, false_negative = pixels.false_positive, pixels.false_negative
    wrong = false_positive[at] + false_negative[at]
    # False positives are those skin pixels that are above the threshold, so their number falls with
    # it, and the number between two thresholds is a difference.
    wrong_saturated = (
        min(false_positive[at], false_positive[high])
        + max(false_positive[at] - false_positive[low], 0)
        + min(false_negative[at], false_negative[low])
        + max(false_negative[at] - false_negative[high], 0)
    )
    return {
        "saturated_fraction": float((above_high + below_low) / counts[:, at].sum()),
        "wrong_saturated_fraction": float(wrong_saturated / wrong) if wrong else 0.0,
    }

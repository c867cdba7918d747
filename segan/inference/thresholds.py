"""The decision thresholds of the sweep, which the served page offers too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_STEPS = 200
THRESHOLDS = np.arange(1, NUM_STEPS) / NUM_STEPS  # 0.005 to 0.995


def threshold_index(threshold: float) -> int:
    """The index of the nearest of THRESHOLDS."""
    return int(np.abs(THRESHOLDS - threshold).argmin())


def above_thresholds(probability: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The masks, bool [..., classes, H, W], of maps of that shape, each class at its threshold."""
    above: np.ndarray = probability > np.array(thresholds, np.float32)[:, None, None]
    return above

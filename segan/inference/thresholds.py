"""The decision thresholds that scores are swept over and the page offers."""

from __future__ import annotations

import numpy as np

NUM_STEPS = 200
THRESHOLDS = np.arange(1, NUM_STEPS) / NUM_STEPS  # 0.005 to 0.995

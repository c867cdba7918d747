"""How far a mean over images can be trusted: percentile intervals of the bootstrap.

Images are drawn with replacement, as another set of as many images of the same kind would be. The
draws follow a seed, so the same scores always have the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
INDICES_PER_BATCH = 2**22  # indices; bounds the memory


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds between which 95 % of its resamples lie."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """The mean of one score for each image.

    Of one image the interval is that image.

    Args:
        values: [N], at least one; none is NaN.
    """
    scores = np.asarray(values, np.float64)
    assert scores.ndim == 1, "one score for each image"
    assert len(scores) > 0, "a mean of nothing is none"
    rng = np.random.default_rng(seed)
    resamples_per_batch = max(1, INDICES_PER_BATCH // len(scores))
    means = np.concatenate(
        [
            scores[
                rng.integers(
                    len(scores), size=(min(resamples_per_batch, NUM_RESAMPLES - at), len(scores))
                )
            ].mean(1)
            for at in range(0, NUM_RESAMPLES, resamples_per_batch)
        ]
    )
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(scores.mean()), float(low), float(high))


def paired_interval(
    values: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, seed: int = 0
) -> Interval:
    """The mean difference, `values` less `rival`, of two models on the same images in one order.

    Paired, because both find the same images hard: the interval is narrower than that of either
    mean. Above zero throughout, `values` is the better.

    Args:
        values, rival: [N] each.
    """
    scores, baseline_scores = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    assert scores.shape == baseline_scores.shape, f"{scores.shape} against {baseline_scores.shape}"
    return mean_interval(scores - baseline_scores, seed)

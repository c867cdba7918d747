"""Percentile bootstrap intervals of a mean over images.

Images are resampled with replacement. The resamples depend on a seed, so the same scores always
have the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
INDICES_PER_BATCH = 2**22  # bounds the memory


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Mean of one score per image. With one image, the interval has no width.

    Args:
        values: [N], N >= 1, without NaN.
    """
    scores = np.asarray(values, np.float64)
    assert scores.ndim == 1, "expected one score per image"
    assert len(scores) > 0, "the mean of no scores is undefined"
    rng = np.random.default_rng(seed)
    batch = max(1, INDICES_PER_BATCH // len(scores))
    means = np.concatenate(
        [
            rng.choice(scores, (min(batch, NUM_RESAMPLES - start), len(scores))).mean(1)
            for start in range(0, NUM_RESAMPLES, batch)
        ]
    )
    # scipy.stats.bootstrap differs in the last digit: it takes the 2.5000000000000022th percentile.
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(float(scores.mean()), float(low), float(high))


def paired_interval(
    values: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, seed: int = 0
) -> Interval:
    """Mean of the per-image differences `values - baseline` of two models on the same images.

    The interval is narrower than that of either mean, because the same images are hard for both.

    Args:
        values, baseline: [N] each, in the same order of images.
    """
    scores, baseline_scores = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    assert scores.shape == baseline_scores.shape, f"{scores.shape} against {baseline_scores.shape}"
    return mean_interval(scores - baseline_scores, seed)


def resample_sums(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums over images of counts [N, ...]: of all, then of each of NUM_RESAMPLES resamples.

    Scores of the pixels of all images together are computed from them; `interval_of` has their
    interval.
    """
    images = len(counts)
    assert images > 0, "the score of no images is undefined"
    rng, flat = np.random.default_rng(seed), counts.reshape(images, -1).astype(np.float64)
    batch = max(1, INDICES_PER_BATCH // images)
    sums = [
        # How often each image is drawn, which is the same as drawing them one by one.
        rng.multinomial(images, np.full(images, 1 / images), min(batch, NUM_RESAMPLES - start))
        @ flat
        for start in range(0, NUM_RESAMPLES, batch)
    ]
    totals = np.concatenate([flat.sum(0, keepdims=True), *sums])
    return totals.reshape(1 + NUM_RESAMPLES, *counts.shape[1:])


def interval_of(values: np.ndarray) -> Interval:
    """A value and its 95 % percentile interval: the first one, and by the resampled ones after it.

    Args:
        values: [1 + NUM_RESAMPLES], of `resample_sums`.
    """
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return Interval(float(values[0]), float(low), float(high))

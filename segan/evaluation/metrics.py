"""Accuracy, Dice and Jaccard of binary masks per image, as the ISIC challenge defines them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCORE_NAMES = ("accuracy", "dice", "jaccard")
FAILED_BELOW = 0.65  # the Jaccard below which the challenge of 2018 counts an image as 0


def threshold_jaccard(jaccard: np.ndarray) -> np.ndarray:
    """The challenge's thresholded Jaccard: 0 where the Jaccard is below FAILED_BELOW."""
    return np.where(jaccard >= FAILED_BELOW, jaccard, 0.0)


@dataclass(frozen=True)
class Confusion:
    """Pixel counts by truth and prediction; arrays of one common shape, one entry per mask."""

    true_positive: np.ndarray
    false_positive: np.ndarray
    false_negative: np.ndarray
    true_negative: np.ndarray

    def stack(self) -> np.ndarray:
        """The counts as one array [4, ...], in the order of the attributes."""
        return np.stack(
            [self.true_positive, self.false_positive, self.false_negative, self.true_negative]
        )

    def sensitivity(self) -> np.ndarray:
        """Fraction of the lesion that is found, in [0, 1]; 1 where there is no lesion."""
        return _ratio(
            self.true_positive.astype(np.float64), self.true_positive + self.false_negative
        )

    def specificity(self) -> np.ndarray:
        """Fraction of the skin that is left out, in [0, 1]; 1 where there is no skin."""
        return _ratio(
            self.true_negative.astype(np.float64), self.true_negative + self.false_positive
        )

    def scores(self) -> dict[str, np.ndarray]:
        """accuracy, dice and jaccard in [0, 1], float64 of the same shape.

        Dice and Jaccard of two empty masks are 1, as in the challenge's own scorer.
        """
        tp, fp = self.true_positive.astype(np.float64), self.false_positive
        fn, tn = self.false_negative, self.true_negative
        return {
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "dice": _ratio(2 * tp, 2 * tp + fp + fn),
            "jaccard": _ratio(tp, tp + fp + fn),
        }


def pooled_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of counts [..., 4], in the order of Confusion: those of `scores`, and two more."""
    found = Confusion(*np.moveaxis(counts, -1, 0))
    return found.scores() | {
        "sensitivity": found.sensitivity(),
        "specificity": found.specificity(),
    }


def confusion(predicted: np.ndarray, truth: np.ndarray) -> Confusion:
    """Counts over the last two axes of two masks, bool [..., H, W] of the same shape."""
    assert predicted.shape == truth.shape, f"{predicted.shape} against {truth.shape}"
    axes = (-2, -1)
    return Confusion(
        true_positive=(predicted & truth).sum(axes),
        false_positive=(predicted & ~truth).sum(axes),
        false_negative=(~predicted & truth).sum(axes),
        true_negative=(~predicted & ~truth).sum(axes),
    )


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator; 1 where the denominator is 0."""
    ratio = np.ones(numerator.shape)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio

"""Exact scores at every threshold in one pass over the images.

Each image has two histograms of its probabilities, one of the lesion pixels and one of the skin
pixels, with bins between the thresholds; cumulative sums of the bins are the confusion counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segan.evaluation.metrics import SCORE_NAMES, Confusion
from segan.evaluation.saturation import saturation
from segan.inference.thresholds import NUM_STEPS, THRESHOLDS, threshold_index


@dataclass
class Sweep:
    """Sums over images of accuracy, dice and jaccard at each of THRESHOLDS.

    Sweeps of several ranks are combined by adding the attributes.

    Attributes:
        sums: [classes, 3, thresholds].
        count: number of images.
        pixels: int64 [4, thresholds], in all images and classes: true positives, false positives,
            false negatives and true negatives.
    """

    sums: np.ndarray
    count: int
    pixels: np.ndarray

    @classmethod
    def empty(cls, classes: int = 1) -> Sweep:
        sums = np.zeros((classes, len(SCORE_NAMES), len(THRESHOLDS)))
        return cls(sums, 0, np.zeros((4, len(THRESHOLDS)), np.int64))

    def update(self, probability: Tensor, truth: Tensor) -> None:
        """Adds a batch of images.

        Args:
            probability: float [B, classes, H, W] in [0, 1]; above a threshold is lesion.
            truth: [B, classes, H, W], nonzero is lesion.
        """
        confusion = confusion_at_thresholds(probability, truth)
        scores = confusion.scores()
        self.sums += np.stack([scores[name].sum(0) for name in SCORE_NAMES], axis=1)
        self.count += probability.shape[0]
        self.pixels += confusion.stack().sum((1, 2))

    def curve(self, name: str = "jaccard") -> np.ndarray:
        """Mean over images and classes of a score at each of THRESHOLDS."""
        assert self.count > 0, "no images were added"
        mean: np.ndarray = self.sums[:, SCORE_NAMES.index(name)].mean(0) / self.count
        return mean

    def best_threshold(self) -> float:
        """The threshold with the best Jaccard; the middle one of equally good thresholds."""
        curve = self.curve()
        best = np.flatnonzero(curve >= curve.max())
        return float(THRESHOLDS[best[len(best) // 2]])

    def scores_at(self, threshold: float) -> dict[str, float]:
        """accuracy, dice and jaccard at the threshold of THRESHOLDS nearest to `threshold`."""
        index = threshold_index(threshold)
        return {name: float(self.curve(name)[index]) for name in SCORE_NAMES}

    def saturation_at(self, threshold: float) -> dict[str, float]:
        """saturated_fraction and wrong_saturated_fraction, see `segan.evaluation.saturation`."""
        return saturation(Confusion(*self.pixels), threshold)


def confusion_at_thresholds(probability: Tensor, truth: Tensor) -> Confusion:
    """Counts [B, classes, thresholds] for probability maps [B, classes, H, W]."""
    edges = torch.as_tensor(THRESHOLDS, dtype=torch.float32, device=probability.device)
    # Bin i holds THRESHOLDS[i - 1] < p <= THRESHOLDS[i], so p > THRESHOLDS[j] fills bins j + 1 on.
    bins = torch.bucketize(probability.float().flatten(2).contiguous(), edges)
    lesion = truth.flatten(2) != 0
    above_lesion = _counts_above(bins, lesion)
    above_skin = _counts_above(bins, ~lesion)
    lesions = lesion.sum(2, keepdim=True).cpu().numpy()
    skins = bins.shape[2] - lesions
    return Confusion(above_lesion, above_skin, lesions - above_lesion, skins - above_skin)


def _counts_above(bins: Tensor, mask: Tensor) -> np.ndarray:
    counts = torch.zeros(*bins.shape[:2], NUM_STEPS, dtype=torch.int64, device=bins.device)
    counts.scatter_add_(2, bins, mask.long())
    counts_from_top = counts.flip(2).cumsum(2).flip(2)
    result: np.ndarray = counts_from_top[:, :, 1:].cpu().numpy()
    return result

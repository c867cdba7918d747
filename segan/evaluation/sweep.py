"""Exact scores at every threshold in one pass over the images.

Each image has two histograms of its probabilities, one of the lesion pixels and one of the skin
pixels, with bins between the thresholds; cumulative sums of the bins are the confusion counts.

The score of a single class is the mean over images, as in the challenge. Of several classes most
images lack some, and there a mean over images would be highest for a model that finds nothing: the
score of each is that of the pixels of all images together, as in semantic segmentation (the mean
over the classes is the mIoU) and in the challenge's own task of several classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segan.evaluation.metrics import SCORE_NAMES, Confusion
from segan.evaluation.saturation import saturation
from segan.inference.thresholds import NUM_STEPS, THRESHOLDS, threshold_index


@dataclass
class Sweep:
    """Accuracy, Dice and Jaccard at each of THRESHOLDS.

    Sweeps of several ranks are combined by adding the attributes.

    Attributes:
        sums: of the scores of images, [classes, 3, thresholds].
        count: number of images.
        pixels: int64 [classes, 4, thresholds], in all images: true positives, false positives,
            false negatives and true negatives.
    """

    sums: np.ndarray
    count: int
    pixels: np.ndarray

    @classmethod
    def empty(cls, classes: int = 1) -> Sweep:
        sums = np.zeros((classes, len(SCORE_NAMES), len(THRESHOLDS)))
        return cls(sums, 0, np.zeros((classes, 4, len(THRESHOLDS)), np.int64))

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
        self.pixels += confusion.stack().sum(1).swapaxes(0, 1)

    def class_curves(self, name: str = "jaccard") -> np.ndarray:
        """Each class's score at each of THRESHOLDS, [classes, thresholds]."""
        assert self.count > 0, "no images were added"
        if len(self.pixels) > 1:
            return Confusion(*self.pixels.swapaxes(0, 1)).scores()[name]
        mean: np.ndarray = self.sums[:, SCORE_NAMES.index(name)] / self.count
        return mean

    def curve(self, name: str = "jaccard") -> np.ndarray:
        """Mean over classes of a score at each of THRESHOLDS."""
        mean: np.ndarray = self.class_curves(name).mean(0)
        return mean

    def best_threshold(self) -> float:
        """The common threshold with the best Jaccard; the middle one of equally good ones."""
        return _best_threshold(self.curve())

    def best_thresholds(self) -> tuple[float, ...]:
        """Each class's threshold with the best Jaccard."""
        return tuple(map(_best_threshold, self.class_curves()))

    def class_scores_at(self, thresholds: Sequence[float]) -> list[dict[str, float]]:
        """accuracy, dice and jaccard of each class at its threshold, see `scores_at`."""
        curves = {name: self.class_curves(name) for name in SCORE_NAMES}
        return [
            {name: float(curves[name][i, threshold_index(threshold)]) for name in SCORE_NAMES}
            for i, threshold in enumerate(thresholds)
        ]

    def scores_at(self, threshold: float | Sequence[float]) -> dict[str, float]:
        """accuracy, dice and jaccard, means over classes, at the nearest of THRESHOLDS.

        Args:
            threshold: of all classes, or one of each.
        """
        classes = len(self.pixels)
        thresholds = threshold if isinstance(threshold, Sequence) else [threshold] * classes
        scores = self.class_scores_at(thresholds)
        return {name: float(np.mean([one[name] for one in scores])) for name in SCORE_NAMES}

    def class_metrics(self, labels: Sequence[str]) -> dict[str, dict[str, float]]:
        """Each class's best threshold, and its scores there: `class_jaccard` and so on, by name."""
        thresholds = self.best_thresholds()
        scores = dict(zip(labels, self.class_scores_at(thresholds), strict=True))
        metrics = {"class_thresholds": dict(zip(labels, thresholds, strict=True))}
        for name in SCORE_NAMES:
            metrics[f"class_{name}"] = {label: one[name] for label, one in scores.items()}
        return metrics

    def saturation_at(self, threshold: float) -> dict[str, float]:
        """saturated_fraction and wrong_saturated_fraction, see `segan.evaluation.saturation`."""
        return saturation(Confusion(*self.pixels.sum(0)), threshold)


def _best_threshold(curve: np.ndarray) -> float:
    best = np.flatnonzero(curve >= curve.max())
    return float(THRESHOLDS[best[len(best) // 2]])


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

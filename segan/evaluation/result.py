"""Evaluation of a model on the validation frames: scores per image, slices, calibration.

Scores are at the frames' size and on the images that selected the model's epoch and threshold, so
they are optimistically biased; none is a test score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from segan.data.profile import image_stats
from segan.evaluation.bootstrap import Interval, mean_interval, paired_interval
from segan.evaluation.hair import hair_fraction
from segan.evaluation.metrics import SCORE_NAMES, confusion
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.slices import ImageScores, SliceGroup, slice_images
from segan.evaluation.sweep import Sweep
from segan.runs.checkpoint import Checkpoint
from segan.utils.models import FrozenModel

NUM_BINS = 10  # of probability, in the calibration


class Calibration(FrozenModel):
    """Calibration over all pixels in NUM_BINS bins of probability.

    Attributes:
        pixels: number of pixels in each bin.
        probability: their mean probability; None in an empty bin.
        lesion_fraction: fraction of them that is lesion; None in an empty bin.
        expected_calibration_error: mean |probability - lesion_fraction| over the bins, weighted by
            pixels.
    """

    pixels: tuple[int, ...]
    probability: tuple[float | None, ...]
    lesion_fraction: tuple[float | None, ...]
    expected_calibration_error: float


class MemberResult(FrozenModel):
    """A member of an ensemble, evaluated alone at its own threshold.

    Attributes:
        gain: Jaccard of the ensemble minus the member's, paired by image.
    """

    threshold: float
    scores: dict[str, Interval]
    gain: Interval


class EvaluationResult(FrozenModel):
    """A model's evaluation on one split.

    Attributes:
        images: in the records' order.
        scores: accuracy, dice and jaccard: means over images at `threshold`.
        threshold_curves: mean of each score at each of `segan.inference.thresholds.THRESHOLDS`.
        members: of an ensemble; empty for one model.
    """

    split: str
    threshold: float
    images: tuple[ImageScores, ...]
    scores: dict[str, Interval]
    threshold_curves: dict[str, tuple[float, ...]]
    slice_groups: tuple[SliceGroup, ...]
    calibration: Calibration
    members: tuple[MemberResult, ...] = ()


class _CalibrationCounts:
    """Per bin of probability: pixels, sum of their probabilities, lesion pixels."""

    def __init__(self) -> None:
        self.sums = np.zeros((3, NUM_BINS))

    def update(self, probability: Tensor, truth: Tensor) -> None:
        flat, lesion = probability.flatten().double(), truth.flatten().double()
        bins = (flat * NUM_BINS).long().clamp_(max=NUM_BINS - 1)
        for row, weights in zip(self.sums, (torch.ones_like(flat), flat, lesion), strict=True):
            row += torch.bincount(bins, weights, NUM_BINS).numpy()

    def compute(self) -> Calibration:
        pixels, probability, lesion = self.sums
        error = abs(probability - lesion).sum() / pixels.sum()
        return Calibration(
            pixels=tuple(int(n) for n in pixels),
            probability=_fractions(probability, pixels),
            lesion_fraction=_fractions(lesion, pixels),
            expected_calibration_error=float(error),
        )


def evaluate_members(
    maps: ProbabilityCache, split: str, members: Sequence[Checkpoint], threshold: float
) -> EvaluationResult:
    """Evaluates the members' mean map on the cached samples.

    Args:
        split: name of the samples' split.
        members: several for an ensemble, else one.
        threshold: applied to the mean map; members evaluated alone use their own.
    """
    samples, counts, scores = maps.samples, _CalibrationCounts(), []
    sweep = Sweep.empty(samples.mask.shape[1])
    for batch, mean in maps.iter_mean(members):
        truth = torch.tensor(samples.mask[batch])
        sweep.update(mean, truth)
        counts.update(mean, truth)
        scores.append(_mean_over_classes(mean.numpy() > threshold, samples.mask[batch]))
    scores_per_image = {name: np.concatenate([s[name] for s in scores]) for name in SCORE_NAMES}
    disagreement = compute_disagreement(maps, members) if len(members) > 1 else None
    images = _score_images(maps, scores_per_image, disagreement)
    return EvaluationResult(
        split=split,
        threshold=threshold,
        images=images,
        scores={name: mean_interval(values) for name, values in scores_per_image.items()},
        threshold_curves={name: tuple(sweep.curve(name).round(6).tolist()) for name in SCORE_NAMES},
        slice_groups=slice_images(images),
        calibration=counts.compute(),
        members=tuple(_evaluate_member(maps, member, scores_per_image) for member in members)
        if len(members) > 1
        else (),
    )


def compute_disagreement(maps: ProbabilityCache, members: Sequence[Checkpoint]) -> np.ndarray:
    """Disagreement of the members' masks per image, float64 [N]: 1 - intersection / union.

    Each mask is at its member's own threshold. The disagreement of empty masks is 0.
    """
    masks = [maps.get(member) > member.threshold for member in members]
    union = np.logical_or.reduce(masks).sum((1, 2, 3))
    intersection = np.logical_and.reduce(masks).sum((1, 2, 3))
    return np.asarray(
        1 - np.divide(intersection, union, out=np.ones(len(intersection)), where=union > 0)
    )


def _score_images(
    maps: ProbabilityCache, scores: dict[str, np.ndarray], disagreement: np.ndarray | None
) -> tuple[ImageScores, ...]:
    samples = maps.samples
    height, width = samples.image.shape[1:3]
    stats = image_stats.compute_stats(samples, [(width, height)] * len(samples.ids)).to_pylist()
    return tuple(
        ImageScores(
            id=row["id"],
            **{name: float(scores[name][i]) for name in SCORE_NAMES},
            lesion_fraction=row["lesion_fraction"],
            touches_border=row["touches_border"],
            ita=None if np.isnan(row["ita"]) else row["ita"],
            hair_fraction=hair_fraction(samples.image[i], np.asarray(samples.mask[i].any(0))),
            disagreement=None if disagreement is None else float(disagreement[i]),
        )
        for i, row in enumerate(stats)
    )


def _evaluate_member(
    maps: ProbabilityCache, member: Checkpoint, ensemble_scores: dict[str, np.ndarray]
) -> MemberResult:
    scores = _mean_over_classes(maps.get(member) > member.threshold, maps.samples.mask)
    return MemberResult(
        threshold=member.threshold,
        scores={name: mean_interval(values) for name, values in scores.items()},
        gain=paired_interval(ensemble_scores["jaccard"], scores["jaccard"]),
    )


def _mean_over_classes(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each image, the mean over its classes; [N] each."""
    scores = confusion(predicted, truth != 0).scores()
    return {name: values.mean(1) for name, values in scores.items()}


def _fractions(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(n / d) if d else None for n, d in zip(numerator, denominator, strict=True))

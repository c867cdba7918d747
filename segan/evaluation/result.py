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
from segan.evaluation.bootstrap import (
    Interval,
    interval_of,
    mean_interval,
    paired_interval,
    resample_sums,
)
from segan.evaluation.hair import hair_fraction
from segan.evaluation.metrics import SCORE_NAMES, Confusion, confusion
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.slices import ImageScores, SliceGroup, slice_images
from segan.evaluation.sweep import Sweep
from segan.inference.thresholds import above_thresholds
from segan.runs.checkpoint import Checkpoint
from segan.utils.labels import LESION
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


class ClassResult(FrozenModel):
    """One of several classes.

    Attributes:
        num_images: that have the class.
        scores: accuracy, dice and jaccard of the pixels of all images together, at `threshold`.
        all_pixels_jaccard: of calling every pixel the class: what no training is needed for.
        jaccard_curve: at each of `segan.inference.thresholds.THRESHOLDS`.
    """

    name: str
    threshold: float
    num_images: int
    scores: dict[str, Interval]
    all_pixels_jaccard: float
    jaccard_curve: tuple[float, ...]


class MemberResult(FrozenModel):
    """A member of an ensemble, evaluated alone at its own threshold.

    Attributes:
        threshold: of several classes, the best common one.
        gain: Jaccard of the ensemble minus the member's, paired by image.
    """

    threshold: float
    scores: dict[str, Interval]
    gain: Interval


class EvaluationResult(FrozenModel):
    """A model's evaluation on one split.

    Attributes:
        images: in the records' order.
        threshold: of several classes, the best common one.
        scores: accuracy, dice and jaccard: means over images at `threshold`; of several classes
            means over the classes, see `ClassResult`, each at its own threshold.
        threshold_curves: mean of each score at each of `segan.inference.thresholds.THRESHOLDS`.
        members: of an ensemble; empty for one model.
        classes: empty for one class.
    """

    split: str
    threshold: float
    images: tuple[ImageScores, ...]
    scores: dict[str, Interval]
    threshold_curves: dict[str, tuple[float, ...]]
    slice_groups: tuple[SliceGroup, ...]
    calibration: Calibration
    members: tuple[MemberResult, ...] = ()
    classes: tuple[ClassResult, ...] = ()


class CalibrationCounts:
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
    maps: ProbabilityCache,
    split: str,
    members: Sequence[Checkpoint],
    thresholds: Sequence[float],
    labels: Sequence[str] = (LESION,),
) -> EvaluationResult:
    """Evaluates the members' mean map on the cached samples.

    Args:
        split: name of the samples' split.
        members: several for an ensemble, else one.
        thresholds: of each class, applied to the mean map; members evaluated alone use their own.
        labels: names of the classes.
    """
    samples, counts, confusions = maps.samples, CalibrationCounts(), []
    sweep = Sweep.empty(len(labels))
    for batch, mean in maps.iter_mean(members):
        truth = torch.tensor(samples.mask[batch])
        sweep.update(mean, truth)
        counts.update(mean, truth)
        predicted = above_thresholds(mean.numpy(), thresholds)
        confusions.append(confusion(predicted, samples.mask[batch] != 0).stack())
    pixels = np.concatenate(confusions, axis=1)
    disagreement = compute_disagreement(maps, members) if len(members) > 1 else None
    images = _score_images(maps, _mean_over_classes(pixels), disagreement)
    sums = _Sums(pixels)
    return EvaluationResult(
        split=split,
        threshold=thresholds[0] if len(labels) == 1 else sweep.best_threshold(),
        images=images,
        scores=sums.mean_scores(),
        threshold_curves={name: tuple(sweep.curve(name).round(6).tolist()) for name in SCORE_NAMES},
        slice_groups=slice_images(images),
        calibration=counts.compute(),
        members=tuple(_evaluate_member(maps, member, sums) for member in members)
        if len(members) > 1
        else (),
        classes=_class_results(labels, thresholds, sweep, samples.mask, sums)
        if len(labels) > 1
        else (),
    )


class _Sums:
    """Scores with intervals of the counts of images, int [4, N, classes].

    Of one class they are means over images, of several those of all pixels of a class.
    """

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels
        counts = np.moveaxis(pixels, 0, -1)
        self.scores: dict[str, np.ndarray] = {}  # [1 + resamples, classes], the first of all images
        if pixels.shape[2] > 1:
            self.scores = Confusion(*np.moveaxis(resample_sums(counts), -1, 0)).scores()

    def mean_scores(self) -> dict[str, Interval]:
        """Means over classes."""
        if not self.scores:
            scores = _mean_over_classes(self.pixels)
            return {name: mean_interval(values) for name, values in scores.items()}
        return {name: interval_of(values.mean(1)) for name, values in self.scores.items()}

    def class_scores(self, index: int) -> dict[str, Interval]:
        return {name: interval_of(values[:, index]) for name, values in self.scores.items()}

    def gain_over(self, other: _Sums) -> Interval:
        """The mean Jaccard minus that of other counts, paired by image."""
        if not self.scores:
            mine, others = (_mean_over_classes(one.pixels)["jaccard"] for one in (self, other))
            return paired_interval(mine, others)
        # The same seed draws the same images for both.
        difference = self.scores["jaccard"] - other.scores["jaccard"]
        return interval_of(difference.mean(1))


def _class_results(
    labels: Sequence[str],
    thresholds: Sequence[float],
    sweep: Sweep,
    masks: np.ndarray,
    sums: _Sums,
) -> tuple[ClassResult, ...]:
    curves = sweep.class_curves()
    return tuple(
        ClassResult(
            name=label,
            threshold=thresholds[i],
            num_images=int(masks[:, i].any((1, 2)).sum()),
            scores=sums.class_scores(i),
            all_pixels_jaccard=float((masks[:, i] != 0).mean()),
            jaccard_curve=tuple(curves[i].round(6).tolist()),
        )
        for i, label in enumerate(labels)
    )


def compute_disagreement(maps: ProbabilityCache, members: Sequence[Checkpoint]) -> np.ndarray:
    """Disagreement of the members' masks per image, float64 [N]: 1 - intersection / union.

    Each mask is at its member's own threshold. The disagreement of empty masks is 0.
    """
    masks = [above_thresholds(maps.get(member), member.thresholds) for member in members]
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


def _evaluate_member(maps: ProbabilityCache, member: Checkpoint, ensemble: _Sums) -> MemberResult:
    predicted = above_thresholds(maps.get(member), member.thresholds)
    sums = _Sums(confusion(predicted, maps.samples.mask != 0).stack())
    return MemberResult(
        threshold=member.threshold,
        scores=sums.mean_scores(),
        gain=ensemble.gain_over(sums),
    )


def _mean_over_classes(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each image, the mean over its classes; [N] each, of counts [4, N, classes]."""
    return {name: values.mean(1) for name, values in Confusion(*pixels).scores().items()}


def _fractions(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(n / d) if d else None for n, d in zip(numerator, denominator, strict=True))

"""What a model does on the validation frames: scores of each image, slices, calibration.

Everything is at the frames' size and on the images that chose the model's epoch and threshold, so
it flatters; none of it is a test score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from segan.data.profile import image_stats
from segan.evaluation.bootstrap import Interval, mean_interval, paired_interval
from segan.evaluation.hair import hair_fraction
from segan.evaluation.metrics import SCORE_NAMES, confusion
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.slices import SliceGroup, slice_images
from segan.evaluation.sweep import Sweep
from segan.runs.checkpoint import Checkpoint

NUM_BINS = 10  # of probability, for calibration


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class ImageScores(FrozenModel):
    """One validation image.

    Attributes:
        accuracy, dice, jaccard: of the model's mask at its threshold.
        lesion: share of the frame that the true lesion covers.
        touches_border: the true lesion reaches the frame's edge.
        tone: individual typology angle in degrees; None where it could not be told.
        hair: share of the skin that looks like hair, see `segan.evaluation.hair`.
        disagreement: of an ensemble's members, see `disagreements`; None of a single model.
    """

    id: str
    accuracy: float
    dice: float
    jaccard: float
    lesion_fraction: float
    touches_border: bool
    ita: float | None
    hair_fraction: float
    disagreement: float | None = None


class Calibration(FrozenModel):
    """Over all pixels, those of each tenth of probability together.

    Attributes:
        pixels: in each tenth.
        probability: their mean; None where there is no pixel.
        lesion: share of them that is lesion; None where there is no pixel.
        error: mean distance of the two, weighted by pixels (expected calibration error).
    """

    pixels: tuple[int, ...]
    probability: tuple[float | None, ...]
    lesion_fraction: tuple[float | None, ...]
    expected_calibration_error: float


class MemberResult(FrozenModel):
    """A member of an ensemble alone, at its own threshold.

    Attributes:
        gain: Jaccard of the ensemble less the member's, over the same images.
    """

    threshold: float
    scores: dict[str, Interval]
    gain: Interval


class EvaluationResult(FrozenModel):
    """
    Attributes:
        images: in the records' order.
        scores: means over images, at `threshold`.
        curves: of each score, its mean at each of `segan.evaluation.sweep.THRESHOLDS`.
        members: of an ensemble.
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
    """Pixels of each bin of probability, the sum of their probabilities, and their lesions."""

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
    """What the mean of the members' maps is worth on the validation frames.

    Args:
        members: one for a single model.
        threshold: of the mean map; the members keep their own.
    """
    samples, counts, scores = maps.samples, _CalibrationCounts(), []
    sweep = Sweep.empty(samples.mask.shape[1])
    for batch, mean in maps.iter_mean(members):
        truth = torch.tensor(samples.mask[batch])
        sweep.update(mean, truth)
        counts.update(mean, truth)
        scores.append(_mean_over_classes(mean.numpy() > threshold, samples.mask[batch]))
    scores_per_image = {name: np.concatenate([one[name] for one in scores]) for name in SCORE_NAMES}
    images = _score_images(
        maps, scores_per_image, compute_disagreement(maps, members) if len(members) > 1 else None
    )
    return EvaluationResult(
        split=split,
        threshold=threshold,
        images=images,
        scores={name: mean_interval(values) for name, values in scores_per_image.items()},
        threshold_curves={name: tuple(sweep.curve(name).round(6).tolist()) for name in SCORE_NAMES},
        slice_groups=slice_images([image.model_dump() for image in images]),
        calibration=counts.compute(),
        members=tuple(_evaluate_member(maps, one, scores_per_image) for one in members)
        if len(members) > 1
        else (),
    )


def compute_disagreement(maps: ProbabilityCache, members: Sequence[Checkpoint]) -> np.ndarray:
    """[N], of the pixels that any member calls lesion, the share that not all of them do.

    Each at its own threshold; 0 where none of them sees a lesion.
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
            lesion_fraction=row["lesion"],
            touches_border=row["touches_border"],
            ita=None if np.isnan(row["tone"]) else row["tone"],
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
    """Of each image, the mean over its classes; [N] each."""
    return {n: s.mean(1) for n, s in confusion(predicted, truth != 0).scores().items()}


def _fractions(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(p / w) if w else None for p, w in zip(numerator, denominator, strict=True))

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

from segan.data import traits
from segan.evaluation.bootstrap import Interval, mean_interval, paired_interval
from segan.evaluation.maps import ValidationMaps
from segan.evaluation.metrics import NAMES, confusion
from segan.evaluation.report.hair import hair_share
from segan.evaluation.report.slices import Slicing, slice_images
from segan.evaluation.sweep import Sweep
from segan.runs import Checkpoint

BINS = 10  # of probability, for calibration


class Plain(BaseModel):
    model_config = ConfigDict(frozen=True)


class Image(Plain):
    """One validation image.

    Attributes:
        accuracy, dice, jaccard: of the model's mask at its threshold.
        lesion: share of the frame that the true lesion covers.
        touches_border: the true lesion reaches the frame's edge.
        tone: individual typology angle in degrees; None where it could not be told.
        hair: share of the skin that looks like hair, see `segan.evaluation.report.hair`.
        disagreement: of an ensemble's members, see `disagreements`; None of a single model.
    """

    id: str
    accuracy: float
    dice: float
    jaccard: float
    lesion: float
    touches_border: bool
    tone: float | None
    hair: float
    disagreement: float | None = None


class Calibration(Plain):
    """Over all pixels, those of each tenth of probability together.

    Attributes:
        pixels: in each tenth.
        probability: their mean; None where there is no pixel.
        lesion: share of them that is lesion; None where there is no pixel.
        error: mean distance of the two, weighted by pixels (expected calibration error).
    """

    pixels: tuple[int, ...]
    probability: tuple[float | None, ...]
    lesion: tuple[float | None, ...]
    error: float


class MemberFindings(Plain):
    """A member of an ensemble alone, at its own threshold.

    Attributes:
        gain: Jaccard of the ensemble less the member's, over the same images.
    """

    threshold: float
    scores: dict[str, Interval]
    gain: Interval


class Findings(Plain):
    """
    Attributes:
        images: in the records' order.
        scores: means over images, at `threshold`.
        curves: of each score, its mean at each of `segan.evaluation.sweep.THRESHOLDS`.
        members: of an ensemble.
    """

    split: str
    threshold: float
    images: tuple[Image, ...]
    scores: dict[str, Interval]
    curves: dict[str, tuple[float, ...]]
    slicings: tuple[Slicing, ...]
    calibration: Calibration
    members: tuple[MemberFindings, ...] = ()


class _Counts:
    """Pixels of each bin of probability, the sum of their probabilities, and their lesions."""

    def __init__(self) -> None:
        self.sums = np.zeros((3, BINS))

    def add(self, probability: Tensor, truth: Tensor) -> None:
        flat, lesion = probability.flatten().double(), truth.flatten().double()
        bins = (flat * BINS).long().clamp_(max=BINS - 1)
        for row, weights in zip(self.sums, (torch.ones_like(flat), flat, lesion), strict=True):
            row += torch.bincount(bins, weights, BINS).numpy()

    def calibration(self) -> Calibration:
        pixels, probability, lesion = self.sums
        error = abs(probability - lesion).sum() / pixels.sum()
        return Calibration(
            pixels=tuple(int(n) for n in pixels),
            probability=_shares(probability, pixels),
            lesion=_shares(lesion, pixels),
            error=float(error),
        )


def assess(
    maps: ValidationMaps, split: str, members: Sequence[Checkpoint], threshold: float
) -> Findings:
    """What the mean of the members' maps is worth on the validation frames.

    Args:
        members: one for a single model.
        threshold: of the mean map; the members keep their own.
    """
    frames, counts, scores = maps.frames, _Counts(), []
    sweep = Sweep.empty(frames.mask.shape[1])
    for part, mean in maps.means(members):
        truth = torch.tensor(frames.mask[part])
        sweep.add(mean, truth)
        counts.add(mean, truth)
        scores.append(_scores(mean.numpy() > threshold, frames.mask[part]))
    whole = {name: np.concatenate([one[name] for one in scores]) for name in NAMES}
    images = _images(maps, whole, disagreements(maps, members) if len(members) > 1 else None)
    return Findings(
        split=split,
        threshold=threshold,
        images=images,
        scores={name: mean_interval(values) for name, values in whole.items()},
        curves={name: tuple(sweep.curve(name).round(6).tolist()) for name in NAMES},
        slicings=slice_images([image.model_dump() for image in images]),
        calibration=counts.calibration(),
        members=tuple(_alone(maps, one, whole) for one in members) if len(members) > 1 else (),
    )


def disagreements(maps: ValidationMaps, members: Sequence[Checkpoint]) -> np.ndarray:
    """[N], of the pixels that any member calls lesion, the share that not all of them do.

    Each at its own threshold; 0 where none of them sees a lesion.
    """
    masks = [maps.of(member) > member.threshold for member in members]
    either = np.logical_or.reduce(masks).sum((1, 2, 3))
    both = np.logical_and.reduce(masks).sum((1, 2, 3))
    return np.asarray(1 - np.divide(both, either, out=np.ones(len(both)), where=either > 0))


def _images(
    maps: ValidationMaps, scores: dict[str, np.ndarray], apart: np.ndarray | None
) -> tuple[Image, ...]:
    frames = maps.frames
    height, width = frames.image.shape[1:3]
    seen = traits.measure(frames, [(width, height)] * len(frames.ids)).to_pylist()
    return tuple(
        Image(
            id=trait["id"],
            **{name: float(scores[name][i]) for name in NAMES},
            lesion=trait["lesion"],
            touches_border=trait["touches_border"],
            tone=None if np.isnan(trait["tone"]) else trait["tone"],
            hair=hair_share(frames.image[i], np.asarray(frames.mask[i].any(0))),
            disagreement=None if apart is None else float(apart[i]),
        )
        for i, trait in enumerate(seen)
    )


def _alone(
    maps: ValidationMaps, member: Checkpoint, whole: dict[str, np.ndarray]
) -> MemberFindings:
    scores = _scores(maps.of(member) > member.threshold, maps.frames.mask)
    return MemberFindings(
        threshold=member.threshold,
        scores={name: mean_interval(values) for name, values in scores.items()},
        gain=paired_interval(whole["jaccard"], scores["jaccard"]),
    )


def _scores(predicted: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Of each image, the mean over its classes; [N] each."""
    return {n: s.mean(1) for n, s in confusion(predicted, truth != 0).scores().items()}


def _shares(part: np.ndarray, whole: np.ndarray) -> tuple[float | None, ...]:
    return tuple(float(p / w) if w else None for p, w in zip(part, whole, strict=True))

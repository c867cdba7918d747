"""The losses of S and C: the multi-scale L1 loss (Eq. 1 and 2), and those compared with it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segan.config import LossConfig

EPS = 1e-7  # lower bound of a probability before its logarithm is taken


def multi_scale_l1(
    predicted: Sequence[Tensor], truth: Sequence[Tensor], config: LossConfig
) -> Tensor:
    """Returns the L1 distance between the critic's features of two masked images (Eq. 1 and 2).

    The reduction "concatenated" is the mean over the values of all levels together; "per_level" is
    the mean of the levels' means.

    Args:
        predicted: the L levels of the image masked by the predicted map, each [B, c, H, W].
        truth: the levels of the image masked by the true map, of the same shapes.

    Returns:
        A float32 scalar >= 0, a mean over the B images.
    """
    assert len(predicted) == len(truth), "both sides need the same levels"
    weights = config.level_weights or (1.0,) * len(predicted)
    distances = [
        weight * (p.float() - t.float()).abs().sum()
        for weight, p, t in zip(weights, predicted, truth, strict=True)
    ]
    sizes = [p.numel() for p in predicted]
    if config.reduction == "concatenated":
        return torch.stack(distances).sum() / sum(sizes)
    means = [distance / size for distance, size in zip(distances, sizes, strict=True)]
    return torch.stack(means).mean()


def dice_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean over images and classes of 1 - 2 |p t| / (|p| + |t|).

    Source: the authors' code, which adds it to S's loss.

    Args:
        predicted: [B, classes, H, W] in [0, 1].
        truth: [B, classes, H, W], 0 or 1.
    """
    p, t = predicted.float().flatten(2), truth.float().flatten(2)
    smooth = 1.0  # so that an empty prediction of an empty truth has loss 0
    dice = (2 * (p * t).sum(2) + smooth) / (p.sum(2) + t.sum(2) + smooth)
    return (1 - dice).mean()


def cross_entropy(predicted: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean over pixels of -log of the probability of the true label.

    Args:
        predicted: [B, classes, H, W] in [0, 1].
        truth: [B, classes, H, W], 0 or 1.
    """
    p, t = predicted.float(), truth.float()
    likelihood = t * p + (1 - t) * (1 - p)
    return -likelihood.clamp_min(EPS).log().mean()


class AdversarialLoss:
    """The critic's objective, which C maximises, and the segmentor's adversarial term, minimised.

    In the paper both are the distance between the features of the two masked images (Eq. 1). With
    a scalar critic, they are those of the classic GAN in its non-saturating form (Goodfellow et al.
    2014; for segmentation Luc et al. 2016, the paper's [12]).
    """

    def __init__(self, config: LossConfig):
        self.config = config
        self.scalar = config.critic == "scalar"

    @property
    def enabled(self) -> bool:
        """Whether there is an adversarial loss."""
        return self.config.critic != "none"

    def critic_objective(self, predicted: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
        """Returns a float32 scalar.

        Args:
            predicted: C's output for the image masked by the predicted map: L levels, each
                [B, c, H, W], or one tensor of log-odds [B].
            truth: C's output for the image masked by the true map.
        """
        if not self.scalar:
            return multi_scale_l1(predicted, truth, self.config)
        (score,), (score_of_truth,) = predicted, truth
        # log C(truth) + log(1 - C(predicted))
        return (F.logsigmoid(score_of_truth.float()) + F.logsigmoid(-score.float())).mean()

    def segmentor_term(self, predicted: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
        """Returns a float32 scalar; -log C(predicted) for a scalar critic."""
        if not self.scalar:
            return multi_scale_l1(predicted, truth, self.config)
        return -F.logsigmoid(predicted[0].float()).mean()


def weighted_segmentor_loss(
    adversarial: Tensor | None, predicted: Tensor, truth: Tensor, config: LossConfig
) -> Tensor:
    """Returns the weighted sum of the adversarial and cross-entropy terms, without the Dice term.

    Args:
        adversarial: from `AdversarialLoss.segmentor_term`; None without an adversarial loss.
        predicted: [B, classes, H, W] in [0, 1].
        truth: [B, classes, H, W], 0 or 1.
    """
    parts = [] if adversarial is None else [config.adversarial_weight * adversarial]
    if config.cross_entropy_weight > 0:
        parts.append(config.cross_entropy_weight * cross_entropy(predicted, truth))
    return sum(parts, start=torch.zeros((), device=predicted.device))

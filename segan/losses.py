"""What S and C are trained on: the multi-scale L1 loss, Eq. 1 and 2, and its rivals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segan.config import LossConfig

EPS = 1e-7  # probability whose logarithm is still taken: below it a pixel has no more to say


def multi_scale_l1(
    predicted: Sequence[Tensor], truth: Sequence[Tensor], config: LossConfig
) -> Tensor:
    """Distance between the critic's features of two masked images, over all its levels.

    With reading "concatenated", Eq. 2's norms are sums over one long vector of all levels, taken
    as its mean; with "per_level", each level's own mean counts the same.

    Args:
        predicted: the L levels of the image under the predicted map, each [B, c, H, W].
        truth: the levels of the image under the true map, of the same shapes.

    Returns:
        A scalar in float32, at least 0; the mean over the B images of Eq. 1.
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
    """1 - 2 |p t| / (|p| + |t|), each image and class apart, then their mean (C adds this to S).

    Args:
        predicted: [B, classes, H, W] in [0, 1].
        truth: [B, classes, H, W], 0 or 1.
    """
    p, t = predicted.float().flatten(2), truth.float().flatten(2)
    smooth = 1.0  # keeps an empty truth with an empty prediction at loss 0
    dice = (2 * (p * t).sum(2) + smooth) / (p.sum(2) + t.sum(2) + smooth)
    return (1 - dice).mean()


def cross_entropy(predicted: Tensor, truth: Tensor) -> Tensor:
    """-log of the probability given to each pixel's truth, the mean over all of them.

    Args:
        predicted: [B, classes, H, W] in [0, 1].
        truth: [B, classes, H, W], 0 or 1.
    """
    p, t = predicted.float(), truth.float()
    likelihood = t * p + (1 - t) * (1 - p)
    return -likelihood.clamp_min(EPS).log().mean()


class AdversarialLoss:
    """What C raises and what S lowers, of what C says of the two masked images.

    The paper's is one number for both: the distance between the features (Eq. 1). In the classic
    one (Goodfellow et al. 2014, the non-saturating form; for segmentation Luc et al. 2016, the
    paper's [12]) C gives each image a score, the log-odds that its mask is the truth.
    """

    def __init__(self, config: LossConfig):
        self.config = config
        self.scalar = config.critic == "scalar"

    @property
    def enabled(self) -> bool:
        """Whether there is an adversary at all."""
        return self.config.critic != "none"

    def critic_objective(self, predicted: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
        """A scalar in float32.

        Args:
            predicted: what C gives of the image under the predicted map: its L levels, each
                [B, c, H, W], or one tensor of scores [B].
            truth: the same of the image under the true map.
        """
        if not self.scalar:
            return multi_scale_l1(predicted, truth, self.config)
        (score,), (score_of_truth,) = predicted, truth
        # log C(truth) + log(1 - C(predicted))
        return (F.logsigmoid(score_of_truth.float()) + F.logsigmoid(-score.float())).mean()

    def segmentor_term(self, predicted: Sequence[Tensor], truth: Sequence[Tensor]) -> Tensor:
        """The same for S, which in the classic game is -log C(predicted)."""
        if not self.scalar:
            return multi_scale_l1(predicted, truth, self.config)
        return -F.logsigmoid(predicted[0].float()).mean()


def weighted_segmentor_loss(
    adversarial: Tensor | None, predicted: Tensor, truth: Tensor, config: LossConfig
) -> Tensor:
    """What S lowers but for the Dice loss: C's word and the cross-entropy by their weights.

    Args:
        adversarial: of `Game.lowered_by_segmentor`; None without an adversary.
        predicted: [B, classes, H, W] in [0, 1].
        truth: [B, classes, H, W], 0 or 1.
    """
    parts = [] if adversarial is None else [config.adversarial_weight * adversarial]
    if config.cross_entropy_weight > 0:
        parts.append(config.cross_entropy_weight * cross_entropy(predicted, truth))
    return sum(parts, start=torch.zeros((), device=predicted.device))

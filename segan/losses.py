"""What segmentor and critic are trained on: the multi-scale L1 loss, Eq. 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segan.config import LossConfig


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
    if config.reading == "concatenated":
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
    one = 1.0  # keeps an empty truth with an empty prediction at loss 0
    dice = (2 * (p * t).sum(2) + one) / (p.sum(2) + t.sum(2) + one)
    return (1 - dice).mean()

"""How a whole frame is put into S, which was trained on square crops, and its map brought back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from segan.config import Config
from segan.networks.segmentor import Segmentor

MULTIPLE = 64  # of a padded frame's sides: six halvings come out even


@torch.inference_mode()
def segment_frames(segmentor: Segmentor, frames: Tensor, config: Config) -> Tensor:
    """Probabilities of whole frames at the frames' own size.

    `evaluation.frame` says how: "whole" puts the frame in as it is, "padded" reflects it out to a
    multiple of 64 and cuts the map back, "resized" squeezes it to the training crop's square.

    Args:
        segmentor: in evaluation mode.
        frames: uint8 [B, H, W, 3].

    Returns:
        float32 [B, classes, H, W] in [0, 1].
    """
    assert not segmentor.training, "batch statistics must not leak into an evaluation"
    height, width = frames.shape[1:3]
    x = frames.permute(0, 3, 1, 2).float().div_(255).contiguous()
    if config.evaluation.frame == "whole":
        return segmentor(x).float()
    if config.evaluation.frame == "padded":
        right, bottom = -width % MULTIPLE, -height % MULTIPLE
        padded = F.pad(x, (0, right, 0, bottom), mode="reflect")
        return segmentor(padded)[..., :height, :width].float()
    side = config.augment.crop
    squeezed = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    maps = segmentor(squeezed).float()
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def mean_map(maps: Iterable[Tensor]) -> Tensor:
    """The mean of several models' maps of the same shape, of which only their sum is kept."""
    each = iter(maps)
    total, count = next(each), 1
    for one in each:
        total, count = total + one, count + 1
    return total / count

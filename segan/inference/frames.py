"""Segments whole frames with S, which is trained on square crops."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from segan.config import Config
from segan.networks.segmentor import Segmentor

PAD_MULTIPLE = 64  # pixels; S halves its input six times
FLIP_AXES = ((), (3,), (2,), (2, 3))  # of [B, c, H, W]: none, left-right, top-bottom, both


@torch.inference_mode()
def segment_frames(segmentor: Segmentor, frames: Tensor, config: Config) -> Tensor:
    """The probability maps of whole frames, at the frames' size.

    `evaluation.resize_mode` selects the input of S: "native" is the frame, "pad" the frame padded
    by reflection to multiples of 64, "resize" the frame resized to the square of the training crop.
    With `evaluation.tta` the maps of the frame and of its three mirror images are averaged.

    Args:
        segmentor: in evaluation mode.
        frames: uint8 [B, H, W, 3].

    Returns:
        float32 [B, classes, H, W] in [0, 1].
    """
    assert not segmentor.training, "batch statistics must not leak into an evaluation"
    if len(frames) == 1 and frames.device.type == "cpu":
        # Kernels for a batch of one differ from those for larger batches, by 1e-4 in the maps.
        return segment_frames(segmentor, frames.expand(2, -1, -1, -1), config)[:1]
    return segment_images(segmentor, frames.permute(0, 3, 1, 2).float().div_(255), config)


def segment_images(segmentor: Segmentor, x: Tensor, config: Config) -> Tensor:
    """As `segment_frames`, of float32 [B, 3, H, W] in [0, 1]; exports trace this function."""
    flips = FLIP_AXES if config.evaluation.tta else FLIP_AXES[:1]
    x = x.contiguous()
    return mean_map(_segment(segmentor, x.flip(axes), config).flip(axes) for axes in flips)


def mean_map(maps: Iterable[Tensor]) -> Tensor:
    """The mean of maps of one shape; holds only their running sum in memory."""
    remaining = iter(maps)
    total, count = next(remaining), 1
    for values in remaining:
        total, count = total + values, count + 1
    return total / count


def std_map(maps: Tensor) -> Tensor:
    """The uncertainty maps: the standard deviation over members, float32 [..., H, W] in [0, 0.5].

    Args:
        maps: the members' probabilities, float32 [members, ..., H, W].
    """
    return maps.std(0, correction=0)


def _segment(segmentor: Segmentor, x: Tensor, config: Config) -> Tensor:
    """Maps of images [B, 3, H, W] in [0, 1] by `evaluation.resize_mode`."""
    height, width = x.shape[2:]
    maps: Tensor
    if config.evaluation.resize_mode == "native":
        maps = segmentor(x).float()
    elif config.evaluation.resize_mode == "pad":
        right, bottom = -width % PAD_MULTIPLE, -height % PAD_MULTIPLE
        padded = F.pad(x, (0, right, 0, bottom), mode="reflect")
        maps = segmentor(padded)[..., :height, :width].float()
    else:
        side = config.augment.crop
        square = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
        maps = segmentor(square).float()
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    return maps

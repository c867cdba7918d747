"""How a whole frame is put into S, which was trained on square crops, and its map brought back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from segan.config import Config
from segan.networks.segmentor import Segmentor

PAD_MULTIPLE = 64  # of a padded frame's sides: six halvings come out even
FLIP_AXES = ((), (3,), (2,), (2, 3))  # axes of [B, c, H, W]: as it is, left-right, top-bottom, both


@torch.inference_mode()
def segment_frames(segmentor: Segmentor, frames: Tensor, config: Config) -> Tensor:
    """Probabilities of whole frames at the frames' own size.

    `evaluation.resize_mode` says how: "native" puts the frame in as it is, "pad" reflects it to a
    multiple of 64 and cuts the map back, "resize" squeezes it to the training crop's square.
    With `evaluation.tta` the frame is put in four times, mirrored in each way that training
    mirrors, and the maps are mirrored back and averaged.

    Args:
        segmentor: in evaluation mode.
        frames: uint8 [B, H, W, 3].

    Returns:
        float32 [B, classes, H, W] in [0, 1].
    """
    assert not segmentor.training, "batch statistics must not leak into an evaluation"
    if len(frames) == 1 and frames.device.type == "cpu":
        # Alone, a frame would go through other kernels than in company, and differ by 1e-4.
        return segment_frames(segmentor, frames.expand(2, -1, -1, -1), config)[:1]
    return segment_images(segmentor, frames.permute(0, 3, 1, 2).float().div_(255), config)


def segment_images(segmentor: Segmentor, x: Tensor, config: Config) -> Tensor:
    """`segment_frames` of float32 [B, 3, H, W] in [0, 1]; what an export traces."""
    ways = FLIP_AXES if config.evaluation.tta else FLIP_AXES[:1]
    x = x.contiguous()
    return mean_map(_segment(segmentor, x.flip(axes), config).flip(axes) for axes in ways)


def mean_map(maps: Iterable[Tensor]) -> Tensor:
    """The mean of several models' maps of the same shape, of which only their sum is kept."""
    each = iter(maps)
    total, count = next(each), 1
    for one in each:
        total, count = total + one, count + 1
    return total / count


def std_map(maps: Tensor) -> Tensor:
    """The uncertainty map: the standard deviation over members, float32 [H, W] in [0, 0.5].

    Args:
        maps: the members' probabilities, float32 [members, H, W].
    """
    return maps.std(0, correction=0)


def _segment(segmentor: Segmentor, x: Tensor, config: Config) -> Tensor:
    """Maps of [B, 3, H, W] in [0, 1], put in as `evaluation.resize_mode` says."""
    height, width = x.shape[2:]
    if config.evaluation.resize_mode == "native":
        return segmentor(x).float()
    if config.evaluation.resize_mode == "pad":
        right, bottom = -width % PAD_MULTIPLE, -height % PAD_MULTIPLE
        padded = F.pad(x, (0, right, 0, bottom), mode="reflect")
        return segmentor(padded)[..., :height, :width].float()
    side = config.augment.crop
    squeezed = F.interpolate(x, (side, side), mode="bilinear", antialias=True)
    maps = segmentor(squeezed).float()
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)

"""The paper's augmentation (section 3), on the device and a batch at a time.

Random crop (or, as in the authors' code, the whole frame squeezed to the crop's square), both
flips, and colour jitter in brightness, contrast, saturation and hue. What a sample is given is a
function of (seed, epoch, sample id) alone, so a resumed run, another number of workers or another
machine draws it the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segan.config import AugmentConfig

LAST = 1 - 2.0**-53  # the greatest draw
# Crop row (its least squeeze the frame instead), crop column, two flips, brightness, contrast,
# saturation, hue.
DRAWS = 8
LUMA = (0.299, 0.587, 0.114)  # weights of R, G, B in grey, ITU-R BT.601


def draw(seed: int, epochs: Sequence[int], ids: Sequence[str]) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [B, 8], each row a function of (seed, epoch, id)."""
    digests = b"".join(
        hashlib.blake2b(f"augment/{seed}/{epoch}/{sample_id}".encode(), digest_size=64).digest()
        for epoch, sample_id in zip(epochs, ids, strict=True)
    )
    bits = np.frombuffer(digests, dtype="<u8").reshape(-1, DRAWS)
    return (bits >> np.uint64(11)) * 2.0**-53


def augment(
    image: Tensor, mask: Tensor, draws: Tensor, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Crops, flips and jitters; image and mask move together.

    Args:
        image: uint8 [B, H, W, 3].
        mask: uint8 [B, classes, H, W], 0 or 1.
        draws: float64 [B, 8] in [0, 1), from `draw`; float32 would round some up to 1.

    Returns:
        image float32 [B, 3, crop, crop] in [0, 1] and mask float32 [B, classes, crop, crop],
        still 0 or 1.
    """
    rows, columns = _window(draws, image.shape[1:3], config)
    which = torch.arange(image.shape[0], device=image.device)[:, None, None]
    cut = image[which, rows[:, :, None], columns[:, None, :]]
    x = cut.permute(0, 3, 1, 2).float().div_(255).contiguous()
    y = mask.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]]
    y = y.permute(0, 3, 1, 2).float().contiguous()
    if config.resize_probability > 0:
        chosen = (draws[:, 0] < config.resize_probability)[:, None, None, None]
        whole, map_of_whole = _squeeze(image, mask, draws, config)
        x, y = torch.where(chosen, whole, x), torch.where(chosen, map_of_whole, y)
    return jitter(x, draws[:, 4:], config), y


def jitter(image: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Brightness, contrast, saturation, then hue, each by its own draw.

    Args:
        image: float32 [B, 3, H, W] in [0, 1].
        draws: [B, 4] in [0, 1).
    """
    spread = 2 * draws.to(image.dtype) - 1
    brightness, contrast, saturation, hue = spread[:, :, None, None, None].unbind(1)
    if config.brightness > 0:
        image = (image * (1 + config.brightness * brightness)).clamp(0, 1)
    if config.contrast > 0:
        mean = grey(image).mean((2, 3), keepdim=True)
        image = (mean + (image - mean) * (1 + config.contrast * contrast)).clamp(0, 1)
    if config.saturation > 0:
        pale = grey(image)
        image = (pale + (image - pale) * (1 + config.saturation * saturation)).clamp(0, 1)
    if config.hue > 0:
        image = turn_hue(image, config.hue * hue)
    return image


def grey(image: Tensor) -> Tensor:
    """[B, 3, H, W] to its luma, [B, 1, H, W]."""
    red, green, blue = image.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def turn_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue of HSV by a share of the full circle.

    Args:
        image: [B, 3, H, W] in [0, 1].
        turn: [B, 1, 1, 1] in [-0.5, 0.5].
    """
    red, green, blue = image.unbind(1)
    value, which = image.max(1)
    chroma = value - image.min(1).values
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixths = torch.stack(
        [(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], 1
    )
    hue = sixths.gather(1, which.unsqueeze(1)).squeeze(1) + 6 * turn.squeeze(1)
    # A channel is the value less the chroma's share that its place on the circle of six takes.
    places = [(n + hue) % 6 for n in (5, 3, 1)]
    shares = [torch.minimum(k, 4 - k).clamp(0, 1) for k in places]
    return torch.stack([value - chroma * share for share in shares], 1)


def _squeeze(
    image: Tensor, mask: Tensor, draws: Tensor, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Whole frames as the crop's square, flipped by their draws; shapes as `augment` gives them."""
    size = (config.crop, config.crop)
    whole = image.permute(0, 3, 1, 2).float().div_(255)
    x = F.interpolate(whole, size, mode="bilinear", antialias=True).clamp(0, 1)
    y = F.interpolate(mask.float(), size, mode="nearest-exact")
    flips = ((2, 3, config.flip_horizontal), (3, 2, config.flip_vertical))
    for column, axis, probability in flips:
        turned = (draws[:, column] < probability)[:, None, None, None]
        x, y = (torch.where(turned, part.flip(axis), part) for part in (x, y))
    return x, y


def _window(draws: Tensor, frame: torch.Size, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Rows [B, crop] and columns [B, crop] to take; a flipped crop takes them backwards."""
    height, width = frame
    side = config.crop
    assert side <= min(height, width), f"crop {side} does not fit a frame of {height} x {width}"
    row, squeezed = draws[:, 0], config.resize_probability
    if 0 < squeezed < 1:  # what lies above it is spread over all rows again
        row = ((row - squeezed) / (1 - squeezed)).clamp(0, LAST)
    top = (row * (height - side + 1)).long()
    left = (draws[:, 1] * (width - side + 1)).long()
    steps = torch.arange(side, device=draws.device)[None, :]
    columns = torch.where((draws[:, 2] < config.flip_horizontal)[:, None], side - 1 - steps, steps)
    rows = torch.where((draws[:, 3] < config.flip_vertical)[:, None], side - 1 - steps, steps)
    return top[:, None] + rows, left[:, None] + columns

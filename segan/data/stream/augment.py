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

MAX_UNIFORM = 1 - 2.0**-53  # the greatest draw
# Crop row (its least squeeze the frame instead), crop column, two flips, brightness, contrast,
# saturation, hue.
NUM_PARAMS = 8
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # weights of R, G, B in grey, ITU-R BT.601


def sample_params(seed: int, epochs: Sequence[int], ids: Sequence[str]) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [B, 8], each row a function of (seed, epoch, id)."""
    digests = b"".join(
        hashlib.blake2b(f"augment/{seed}/{epoch}/{sample_id}".encode(), digest_size=64).digest()
        for epoch, sample_id in zip(epochs, ids, strict=True)
    )
    bits = np.frombuffer(digests, dtype="<u8").reshape(-1, NUM_PARAMS)
    return (bits >> np.uint64(11)) * 2.0**-53


def augment(
    image: Tensor, mask: Tensor, params: Tensor, config: AugmentConfig
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
    rows, columns = _crop_indices(params, image.shape[1:3], config)
    batch_index = torch.arange(image.shape[0], device=image.device)[:, None, None]
    cropped = image[batch_index, rows[:, :, None], columns[:, None, :]]
    x = cropped.permute(0, 3, 1, 2).float().div_(255).contiguous()
    y = mask.permute(0, 2, 3, 1)[batch_index, rows[:, :, None], columns[:, None, :]]
    y = y.permute(0, 3, 1, 2).float().contiguous()
    if config.resize_probability > 0:
        chosen = (params[:, 0] < config.resize_probability)[:, None, None, None]
        resized, resized_mask = _resize_whole_frame(image, mask, params, config)
        x, y = torch.where(chosen, resized, x), torch.where(chosen, resized_mask, y)
    return color_jitter(x, params[:, 4:], config), y


def color_jitter(image: Tensor, params: Tensor, config: AugmentConfig) -> Tensor:
    """Brightness, contrast, saturation, then hue, each by its own draw.

    Args:
        image: float32 [B, 3, H, W] in [0, 1].
        draws: [B, 4] in [0, 1).
    """
    offsets = 2 * params.to(image.dtype) - 1
    brightness, contrast, saturation, hue = offsets[:, :, None, None, None].unbind(1)
    if config.brightness > 0:
        image = (image * (1 + config.brightness * brightness)).clamp(0, 1)
    if config.contrast > 0:
        mean = rgb_to_grayscale(image).mean((2, 3), keepdim=True)
        image = (mean + (image - mean) * (1 + config.contrast * contrast)).clamp(0, 1)
    if config.saturation > 0:
        gray = rgb_to_grayscale(image)
        image = (gray + (image - gray) * (1 + config.saturation * saturation)).clamp(0, 1)
    if config.hue > 0:
        image = adjust_hue(image, config.hue * hue)
    return image


def rgb_to_grayscale(image: Tensor) -> Tensor:
    """[B, 3, H, W] to its luma, [B, 1, H, W]."""
    red, green, blue = image.unbind(1)
    return (LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue).unsqueeze(1)


def adjust_hue(image: Tensor, hue_factor: Tensor) -> Tensor:
    """Turns the hue of HSV by a share of the full circle.

    Args:
        image: [B, 3, H, W] in [0, 1].
        turn: [B, 1, 1, 1] in [-0.5, 0.5].
    """
    red, green, blue = image.unbind(1)
    value, max_channel = image.max(1)
    chroma = value - image.min(1).values
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixths = torch.stack(
        [(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], 1
    )
    hue = sixths.gather(1, max_channel.unsqueeze(1)).squeeze(1) + 6 * hue_factor.squeeze(1)
    # A channel is the value less the chroma's share that its place on the circle of six takes.
    places = [(n + hue) % 6 for n in (5, 3, 1)]
    shares = [torch.minimum(k, 4 - k).clamp(0, 1) for k in places]
    return torch.stack([value - chroma * share for share in shares], 1)


def _resize_whole_frame(
    image: Tensor, mask: Tensor, params: Tensor, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Whole frames as the crop's square, flipped by their draws; shapes as `augment` gives them."""
    size = (config.crop, config.crop)
    images = image.permute(0, 3, 1, 2).float().div_(255)
    x = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
    y = F.interpolate(mask.float(), size, mode="nearest-exact")
    flips = ((2, 3, config.flip_horizontal), (3, 2, config.flip_vertical))
    for column, axis, probability in flips:
        flipped = (params[:, column] < probability)[:, None, None, None]
        x, y = (torch.where(flipped, part.flip(axis), part) for part in (x, y))
    return x, y


def _crop_indices(
    params: Tensor, frame_size: torch.Size, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Rows [B, crop] and columns [B, crop] to take; a flipped crop takes them backwards."""
    height, width = frame_size
    side = config.crop
    assert side <= min(height, width), f"crop {side} does not fit a frame of {height} x {width}"
    row, resize_probability = params[:, 0], config.resize_probability
    if 0 < resize_probability < 1:  # what lies above it is spread over all rows again
        row = ((row - resize_probability) / (1 - resize_probability)).clamp(0, MAX_UNIFORM)
    top = (row * (height - side + 1)).long()
    left = (params[:, 1] * (width - side + 1)).long()
    steps = torch.arange(side, device=params.device)[None, :]
    columns = torch.where((params[:, 2] < config.flip_horizontal)[:, None], side - 1 - steps, steps)
    rows = torch.where((params[:, 3] < config.flip_vertical)[:, None], side - 1 - steps, steps)
    return top[:, None] + rows, left[:, None] + columns

"""The paper's augmentation (section 3) of a batch on the device.

Random crop (or, as in the authors' code, the whole frame resized to the crop size), horizontal and
vertical flips, and colour jitter of brightness, contrast, saturation and hue; beyond the paper,
crops that are rotated and magnified. The parameters depend on (seed, epoch, sample id) alone, so
they do not change with resuming, workers or machine.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segan.config import AugmentConfig

MAX_UNIFORM = 1 - 2.0**-53  # largest value of `sample_params`
# Crop row (small values resize the frame instead), crop column, horizontal and vertical flip,
# brightness, contrast, saturation, hue, rotation, zoom.
NUM_PARAMS = 10
ROTATION, ZOOM = 8, 9  # their columns
LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # of R, G, B: ITU-R BT.601


def sample_params(seed: int, epochs: Sequence[int], ids: Sequence[str]) -> np.ndarray:
    """Augmentation parameters of each sample: uniform in [0, 1), float64 [B, NUM_PARAMS]."""
    digests = b"".join(
        hashlib.blake2b(f"augment/{seed}/{epoch}/{sample_id}".encode(), digest_size=64).digest()
        for epoch, sample_id in zip(epochs, ids, strict=True)
    )
    bits = np.frombuffer(digests, dtype="<u8").reshape(len(ids), 8)
    # A float64 has 53 bits. The other 11 of two words are parameters of their own.
    left_over = (bits[:, :2] & np.uint64(0x7FF)) * 2.0**-11
    return np.hstack([(bits >> np.uint64(11)) * 2.0**-53, left_over])


def augment(
    image: Tensor, mask: Tensor, params: Tensor, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Crops, turns and flips images and masks alike, and jitters the images' colours.

    Args:
        image: uint8 [B, H, W, 3].
        mask: uint8 [B, classes, H, W], 0 or 1.
        params: float64 [B, NUM_PARAMS] of `sample_params`; float32 would round some up to 1.

    Returns:
        Images, float32 [B, 3, crop, crop] in [0, 1], and masks, float32 [B, classes, crop, crop],
        0 or 1.
    """
    rows, columns = _crop_indices(params, image.shape[1:3], config)
    if config.rotation > 0 or config.zoom > 1:
        x, y = _turned_crops(image, mask, rows, columns, params, config)
    else:
        batch_index = torch.arange(image.shape[0], device=image.device)[:, None, None]
        cropped = image[batch_index, rows[:, :, None], columns[:, None, :]]
        x = cropped.permute(0, 3, 1, 2).float().div_(255).contiguous()
        y = mask.permute(0, 2, 3, 1)[batch_index, rows[:, :, None], columns[:, None, :]]
        y = y.permute(0, 3, 1, 2).float().contiguous()
    if config.resize_probability > 0:
        chosen = (params[:, 0] < config.resize_probability)[:, None, None, None]
        resized, resized_mask = _resize_whole_frame(image, mask, params, config)
        x, y = torch.where(chosen, resized, x), torch.where(chosen, resized_mask, y)
    return color_jitter(x, params[:, 4:ROTATION], config), y


def color_jitter(image: Tensor, params: Tensor, config: AugmentConfig) -> Tensor:
    """Jitters brightness, contrast, saturation and hue, in this order.

    Args:
        image: float32 [B, 3, H, W] in [0, 1].
        params: [B, 4] in [0, 1); 0.5 changes nothing.
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
    """Luma, [B, 1, H, W], of RGB images [B, 3, H, W]."""
    red, green, blue = image.unbind(1)
    return (LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue).unsqueeze(1)


def adjust_hue(image: Tensor, hue_factor: Tensor) -> Tensor:
    """Shifts the hue of HSV.

    Args:
        image: [B, 3, H, W] in [0, 1].
        hue_factor: [B, 1, 1, 1] in [-0.5, 0.5], a fraction of the full circle.
    """
    red, green, blue = image.unbind(1)
    value, max_channel = image.max(1)
    chroma = value - image.min(1).values
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixths = torch.stack(
        [(green - blue) / safe, 2 + (blue - red) / safe, 4 + (red - green) / safe], 1
    )
    hue = sixths.gather(1, max_channel.unsqueeze(1)).squeeze(1) + 6 * hue_factor.squeeze(1)
    # Channel = V - C * max(0, min(k, 4 - k, 1)) with k = (n + hue / 60 degrees) mod 6.
    ks = [(n + hue) % 6 for n in (5, 3, 1)]
    weights = [torch.minimum(k, 4 - k).clamp(0, 1) for k in ks]
    return torch.stack([value - chroma * weight for weight in weights], 1)


def _resize_whole_frame(
    image: Tensor, mask: Tensor, params: Tensor, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Resizes whole frames to crop x crop pixels and flips them; shapes as `augment` returns."""
    size = (config.crop, config.crop)
    images = image.permute(0, 3, 1, 2).float().div_(255)
    x = F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)
    y = F.interpolate(mask.float(), size, mode="nearest-exact")
    flips = ((2, 3, config.flip_horizontal), (3, 2, config.flip_vertical))
    for column, axis, probability in flips:
        flipped = (params[:, column] < probability)[:, None, None, None]
        x, y = (torch.where(flipped, part.flip(axis), part) for part in (x, y))
    return x, y


def _turned_crops(
    image: Tensor,
    mask: Tensor,
    rows: Tensor,
    columns: Tensor,
    params: Tensor,
    config: AugmentConfig,
) -> tuple[Tensor, Tensor]:
    """The crops of `_crop_indices` rotated and magnified around their centres.

    Images are sampled bilinearly, masks at the nearest pixel, and both are reflected at the edges
    of the frame. Shapes as `augment` returns.
    """
    height, width = image.shape[1:3]
    angle = math.radians(config.rotation) * (2 * params[:, ROTATION] - 1)
    scale = config.zoom ** (2 * params[:, ZOOM] - 1)
    cos, sin = (scale * angle.cos())[:, None, None], (scale * angle.sin())[:, None, None]
    center_row, center_column = rows.double().mean(1), columns.double().mean(1)
    down = (rows - center_row[:, None])[:, :, None]
    right = (columns - center_column[:, None])[:, None, :]
    row = center_row[:, None, None] + cos * down - sin * right
    column = center_column[:, None, None] + sin * down + cos * right
    # grid_sample counts from -1 to 1 between the frame's edges, half a pixel beyond its pixels.
    grid = torch.stack([(2 * column + 1) / width - 1, (2 * row + 1) / height - 1], -1).float()
    sample = functools.partial(
        F.grid_sample, grid=grid, padding_mode="reflection", align_corners=False
    )
    x = sample(image.permute(0, 3, 1, 2).float().div_(255)).clamp(0, 1)
    return x, sample(mask.float(), mode="nearest")


def _crop_indices(
    params: Tensor, frame_size: torch.Size, config: AugmentConfig
) -> tuple[Tensor, Tensor]:
    """Row and column indices of the crops, [B, crop] each, in reverse order if flipped."""
    height, width = frame_size
    side = config.crop
    assert side <= min(height, width), f"crop {side} does not fit a frame of {height} x {width}"
    row, resize_probability = params[:, 0], config.resize_probability
    if 0 < resize_probability < 1:  # maps [resize_probability, 1) to [0, 1)
        row = ((row - resize_probability) / (1 - resize_probability)).clamp(0, MAX_UNIFORM)
    top = (row * (height - side + 1)).long()
    left = (params[:, 1] * (width - side + 1)).long()
    steps = torch.arange(side, device=params.device)[None, :]
    columns = torch.where((params[:, 2] < config.flip_horizontal)[:, None], side - 1 - steps, steps)
    rows = torch.where((params[:, 3] < config.flip_vertical)[:, None], side - 1 - steps, steps)
    return top[:, None] + rows, left[:, None] + columns

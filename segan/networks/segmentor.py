"""The segmentor S, from an image to a probability map per class (section 2.2, Figure 1)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segan.config import NetworkConfig
from segan.networks.blocks import (
    NEGATIVE_SLOPE,
    Residual,
    build_with_seed,
    convolution,
    normalisation,
)
from segan.networks.logistic import AdaptiveLogistic

DOWN_KERNELS = (7, 5, 5, 5, 5, 4)  # D1 to D6 (F)
DOWN_WIDTHS = (1, 2, 4, 8, 16, 32)  # in multiples of w (F)
UP_KERNELS = (3, 7, 7, 9, 9, 11)  # U1 to U6 (F)
UP_WIDTHS = (16, 8, 4, 2, 1, 1)
MIN_SIDE = 33  # pixels; the smallest side that can be halved six times


class Segmentor(nn.Module):
    """An encoder and a decoder of six blocks each, with a skip connection at each scale.

    A down block is a convolution of stride 2, batch norm (not in D1), leaky ReLU and a residual
    block; an up block is a bilinear resize, convolution, batch norm, ReLU and a residual block.
    With `config.segmentor_norm`, every batch norm is a group norm instead. The decoder resizes to
    the size of the next skip, so the output has the size of the input, which needs at least
    MIN_SIDE pixels per side.
    """

    def __init__(self, config: NetworkConfig, channels: int = 3):
        super().__init__()
        down = [channels, *(config.width * m for m in DOWN_WIDTHS)]
        up = [down[-1], *(config.width * m for m in UP_WIDTHS)]
        self.down = nn.ModuleList(
            _down_block(config, c_in, c_out, kernel, norm=i > 0)
            for i, ((c_in, c_out), kernel) in enumerate(
                zip(pairwise(down), DOWN_KERNELS, strict=True)
            )
        )
        skips = [0, *reversed(down[1:-1])]  # U1 has no skip, U2 has D5, ...
        self.up = nn.ModuleList(
            _up_block(config, c_in + c_skip, c_out, kernel)
            for (c_in, c_out), c_skip, kernel in zip(pairwise(up), skips, UP_KERNELS, strict=True)
        )
        self.out = nn.Conv2d(up[-1], config.classes, 5, padding=2)
        self.logistic = AdaptiveLogistic()

    def logits(self, x: Tensor) -> Tensor:
        """Maps [B, 3, H, W] in [0, 1] to [B, classes, H, W], the input of the logistic."""
        assert min(x.shape[-2:]) >= MIN_SIDE, f"S needs {MIN_SIDE} pixels a side: {x.shape}"
        skips = []
        y = x
        for block in self.down:
            y = block(y)
            skips.append(y)
        y = skips.pop()
        joined = y
        for block in self.up:
            size = skips[-1].shape[-2:] if skips else x.shape[-2:]
            resized = F.interpolate(joined, size=size, mode="bilinear", align_corners=False)
            y = block(resized)
            joined = torch.cat([y, skips.pop()], dim=1) if skips else y
        z: Tensor = self.out(y)
        return z

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, 3, H, W] in [0, 1] to probabilities [B, classes, H, W]."""
        p: Tensor = self.logistic(self.logits(x))
        return p


def build_segmentor(config: NetworkConfig, seed: int = 0) -> Segmentor:
    """Returns a segmentor with initial weights that are a function of (config, seed)."""
    return build_with_seed(lambda: Segmentor(config), seed, config.segmentor_init == "kaiming")


def _down_block(
    config: NetworkConfig, c_in: int, c_out: int, kernel: int, norm: bool
) -> nn.Sequential:
    # Always plain convolutions; only the decoder has global ones (F).
    activation = partial(nn.LeakyReLU, NEGATIVE_SLOPE)
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, 2, (kernel - 1) // 2, bias=not norm),
        normalisation(config.segmentor_norm, c_out) if norm else nn.Identity(),
        activation(),
        _residual(config, c_out, activation),
    )


def _up_block(config: NetworkConfig, c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(c_in, c_out, kernel, 1, False, config.global_conv_min_kernel),
        normalisation(config.segmentor_norm, c_out),
        nn.ReLU(),
        _residual(config, c_out, nn.ReLU),
    )


def _residual(
    config: NetworkConfig, channels: int, activation: Callable[[], nn.Module]
) -> Residual:
    inner_channels = round(channels * config.residual_expansion)
    return Residual(
        channels,
        max(1, min(inner_channels, config.residual_max_width * config.width)),
        partial(normalisation, config.segmentor_norm),
        activation,
        config.residual_activation == "after",
    )

"""The building blocks of segmentor and critic.

Shapes: B images, c channels, H rows, W columns. A strided convolution halves a side, rounding up
for odd kernels and down for even ones, so any input size is valid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
NEGATIVE_SLOPE = 0.2  # of every leaky ReLU (C)
MAX_GROUPS = 8  # of a group norm


class GlobalConvolution(nn.Module):
    """The sum of two separable branches, k x 1 then 1 x k and 1 x k then k x 1.

    Source: Peng et al., "Large kernel matters", 2017; the paper's section 2.2. Each kernel has the
    stride along its own axis (O).
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, bias: bool = True):
        super().__init__()

        def tall(c: int) -> nn.Conv2d:
            return nn.Conv2d(c, c_out, (kernel, 1), (stride, 1), (kernel // 2, 0), bias=bias)

        def flat(c: int) -> nn.Conv2d:
            return nn.Conv2d(c, c_out, (1, kernel), (1, stride), (0, kernel // 2), bias=bias)

        self.tall_flat = nn.Sequential(tall(c_in), flat(c_out))
        self.flat_tall = nn.Sequential(flat(c_in), tall(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] to [B, c_out, ceil(H / stride), ceil(W / stride)]."""
        y: Tensor = self.tall_flat(x) + self.flat_tall(x)
        return y


def convolution(
    c_in: int, c_out: int, kernel: int, stride: int, bias: bool, global_conv_min_kernel: int
) -> nn.Module:
    """Returns a global convolution if the kernel is odd and large enough, else a plain one.

    Args:
        global_conv_min_kernel: the smallest kernel of a global convolution.
    """
    if kernel >= global_conv_min_kernel and kernel % 2 == 1:
        return GlobalConvolution(c_in, c_out, kernel, stride, bias)
    return nn.Conv2d(c_in, c_out, kernel, stride, (kernel - 1) // 2, bias=bias)


def normalisation(kind: Literal["batch", "group"], channels: int) -> nn.Module:
    """Returns a batch norm, or a group norm of 8 groups or as many as divide the channels.

    A group norm has the same result in training and in evaluation, whatever else is in the batch.
    """
    if kind == "group":
        return nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels)
    return nn.BatchNorm2d(channels)


class Residual(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions added to their input (P, section 2.2).

    Args:
        channels: of the input and the output.
        inner_channels: between the three convolutions.
        norm: builds a normalisation for a number of channels.
        activation: builds an activation module.
        activate_after_sum: whether the last activation follows the sum, or precedes it on the
            branch.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int,
        norm: Callable[[int], nn.Module],
        activation: Callable[[], nn.Module],
        activate_after_sum: bool,
    ):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, inner_channels, 1, bias=False),
            norm(inner_channels),
            activation(),
            nn.Conv2d(inner_channels, inner_channels, 3, padding=1, bias=False),
            norm(inner_channels),
            activation(),
            nn.Conv2d(inner_channels, channels, 1, bias=False),
            norm(channels),
        )
        self.activation = activation()
        self.activate_after_sum = activate_after_sum

    def forward(self, x: Tensor) -> Tensor:
        """[B, c, H, W] to the same shape."""
        y: Tensor = self.branch(x)
        result: Tensor = (
            self.activation(x + y) if self.activate_after_sum else x + self.activation(y)
        )
        return result


def init_weights(network: nn.Module) -> None:
    """Initialises a network in place (C).

    Convolution weights are normal with variance 2 / (k k c_out), gains of normalisations normal
    with mean 1 and standard deviation 0.02, biases zero.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def build_with_seed(build: Callable[[], ModuleT], seed: int, initialise: bool = True) -> ModuleT:
    """Returns `build()` with weights that are a function of the seed; keeps torch's random state.

    Args:
        initialise: whether to call `init_weights`; else the weights are those of torch's modules.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build()
        if initialise:
            init_weights(network)
        return network

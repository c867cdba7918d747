"""The critic C, from a masked image to features at seven scales (section 2.2, Figure 1).

`ScalarCritic` is the classic GAN's discriminator, which the paper compares with (section 2.3).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from segan.config import NetworkConfig
from segan.networks.blocks import NEGATIVE_SLOPE, build_with_seed, convolution

KERNELS = (13, 11, 9, 7, 4, 3)  # C1 to C6 (F)
WIDTHS = (1, 2, 4, 8, 8, 8)  # in multiples of w (F)


class Critic(nn.Module):
    """Six blocks: convolution with stride 2, batch norm (not in C1), leaky ReLU.

    C is used in training only, so its batch norms track no running statistics.
    """

    def __init__(self, config: NetworkConfig, channels: int = 3):
        super().__init__()
        widths = [channels * config.classes, *(config.width * m for m in WIDTHS)]
        norm = partial(nn.BatchNorm2d, track_running_stats=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                convolution(c_in, c_out, kernel, 2, i == 0, config.global_conv_min_kernel),
                norm(c_out) if i > 0 else nn.Identity(),
                nn.LeakyReLU(NEGATIVE_SLOPE),
            )
            for i, ((c_in, c_out), kernel) in enumerate(zip(pairwise(widths), KERNELS, strict=True))
        )

    def forward(self, masked: Tensor) -> list[Tensor]:
        """Maps [B, 3 classes, H, W] to L = 7 levels: the masked image, then C1 to C6."""
        levels = [masked]
        for block in self.blocks:
            levels.append(block(levels[-1]))
        return levels

    @torch.no_grad()
    def clip_weights(self, limit: float, scope: str = "all") -> None:
        """Clips parameters to [-limit, limit], in place (section 3).

        Args:
            limit: greater than 0.
            scope: "all" parameters, or those of the "convolutions" only.
        """
        torch._foreach_clamp_min_(self._clipped_parameters(scope), -limit)
        torch._foreach_clamp_max_(self._clipped_parameters(scope), limit)

    def _clipped_parameters(self, scope: str) -> list[Tensor]:
        if scope == "all":
            return list(self.parameters())
        return [p for m in self.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()]


class ScalarCritic(Critic):
    """Critic with a scalar head: one real/fake score per image, as in a classic GAN (O)."""

    def __init__(self, config: NetworkConfig, channels: int = 3):
        super().__init__(config, channels)
        self.head = nn.Linear(config.width * WIDTHS[-1], 1)

    def forward(self, masked: Tensor) -> list[Tensor]:
        """Maps [B, 3 classes, H, W] to one tensor [B]: the log-odds that the mask is the truth."""
        deepest = super().forward(masked)[-1]
        return [self.head(deepest.mean((2, 3))).squeeze(1)]


def mask_image(image: Tensor, maps: Tensor) -> Tensor:
    """Multiplies the image by each label map (Eq. 1), for the critic.

    Args:
        image: [B, 3, H, W] in [0, 1].
        maps: [B, classes, H, W] in [0, 1].

    Returns:
        [B, 3 classes, H, W], the masked images of all classes.
    """
    return (image.unsqueeze(1) * maps.unsqueeze(2)).flatten(1, 2)


def build_critic(config: NetworkConfig, seed: int = 0, scalar: bool = False) -> Critic:
    """Returns a critic with initial weights that are a function of (config, seed, scalar)."""
    critic = build_with_seed(lambda: (ScalarCritic if scalar else Critic)(config), seed)
    if config.spectral_norm:
        return build_with_seed(lambda: _add_spectral_norm(critic), seed, initialise=False)
    return critic


def _add_spectral_norm(critic: Critic) -> Critic:
    """Divides each weight of convolutions and head by its spectral norm (Miyato et al. 2018).

    Each forward pass estimates that norm by a power iteration. Its vectors are buffers, equal on
    every rank, since they depend on the weights only.
    """
    for module in [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        spectral_norm(module)
    return critic

"""The critic C: a masked image in, its features at seven scales out (section 2.2, Figure 1).

Beside it the rival that the paper argues against (section 2.3): the same C with one number out.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from segan.config import NetworkConfig
from segan.networks.blocks import NEGATIVE_SLOPE, build_with_seed, convolution

KERNELS = (13, 11, 9, 7, 4, 3)  # C1 to C6 (F)
WIDTHS = (1, 2, 4, 8, 8, 8)  # in multiples of w (F)


class Critic(nn.Module):
    """Six blocks of convolution with stride 2, norm (not in C1) and leaky ReLU.

    C is never evaluated, so its norms keep no running statistics: the same training, no buffers.
    """

    def __init__(self, config: NetworkConfig, channels: int = 3):
        super().__init__()
        widths = [config.width * m for m in WIDTHS]
        norm = partial(nn.BatchNorm2d, track_running_stats=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                convolution(c_in, c_out, kernel, 2, i == 0, config.global_conv_min_kernel),
                norm(c_out) if i > 0 else nn.Identity(),
                nn.LeakyReLU(NEGATIVE_SLOPE),
            )
            for i, (c_in, c_out, kernel) in enumerate(
                zip([channels * config.classes, *widths], widths, KERNELS, strict=False)
            )
        )

    def forward(self, masked: Tensor) -> list[Tensor]:
        """[B, 3 classes, H, W] to L = 7 levels: the masked image itself, then C1 to C6."""
        levels = [masked]
        for block in self.blocks:
            levels.append(block(levels[-1]))
        return levels

    @torch.no_grad()
    def clip_weights(self, limit: float, scope: str = "all") -> None:
        """Brings every parameter into [-limit, limit] (section 3).

        Args:
            limit: greater than 0.
            scope: "all" parameters, or the "convolutions" alone.
        """
        torch._foreach_clamp_min_(self._clipped_parameters(scope), -limit)
        torch._foreach_clamp_max_(self._clipped_parameters(scope), limit)

    def _clipped_parameters(self, scope: str) -> list[Tensor]:
        if scope == "all":
            return list(self.parameters())
        return [p for m in self.modules() if isinstance(m, nn.Conv2d) for p in m.parameters()]


class ScalarCritic(Critic):
    """C with a head that makes one number of C6: a classic GAN's word on a whole image (O)."""

    def __init__(self, config: NetworkConfig, channels: int = 3):
        super().__init__(config, channels)
        self.head = nn.Linear(config.width * WIDTHS[-1], 1)

    def forward(self, masked: Tensor) -> list[Tensor]:
        """[B, 3 classes, H, W] to one tensor of scores [B], log-odds that the mask is the truth."""
        deepest = super().forward(masked)[-1]
        return [self.head(deepest.mean((2, 3))).squeeze(1)]


def mask_image(image: Tensor, maps: Tensor) -> Tensor:
    """The image under each label map, pixel by pixel (Eq. 1): what the critic is shown.

    Args:
        image: [B, 3, H, W] in [0, 1].
        maps: [B, classes, H, W] in [0, 1].

    Returns:
        [B, 3 classes, H, W], one masked image after another.
    """
    return (image.unsqueeze(1) * maps.unsqueeze(2)).flatten(1, 2)


def build_critic(config: NetworkConfig, seed: int = 0, scalar: bool = False) -> Critic:
    """A critic with initial weights that are a function of (config, seed, scalar)."""
    critic = build_with_seed(lambda: (ScalarCritic if scalar else Critic)(config), seed)
    return (
        build_with_seed(lambda: _add_spectral_norm(critic), seed, initialise=False)
        if config.spectral_norm
        else critic
    )


def _add_spectral_norm(critic: Critic) -> Critic:
    """Every weight of convolutions and head over its greatest singular value (Miyato et al. 2018).

    That value is followed by a power iteration in each forward, whose vectors are buffers: the
    same on every rank, since they depend on the weights alone.
    """
    for module in [m for m in critic.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        spectral_norm(module)
    return critic

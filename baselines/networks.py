"""MONAI's DynUNet and SegResNet as segmentors, and the width that makes them as large as S."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segan.config import Config
from segan.errors import UsageError
from segan.networks.blocks import build_with_seed, count_parameters
from segan.networks.logistic import AdaptiveLogistic
from segan.networks.segmentor import Segmentor

MAX_WIDTH = 1024
MIN_DEEPEST_SIDE = 4  # pixels of a crop at the deepest level; nnU-Net's rule
MAX_HALVINGS = 5
MAX_FACTOR = 16  # the widest level, in multiples of the first; nnU-Net's 512 of 32


@dataclass(frozen=True)
class Architecture:
    """A family of networks.

    Attributes:
        build: returns the network of a width with so many classes and halvings of its input.
        width_step: widths are its multiples.
        halvings: of the input, for the side of a crop in pixels.
    """

    build: Callable[[int, int, int], nn.Module]
    width_step: int
    halvings: Callable[[int], int]


def _dynunet(width: int, classes: int, halvings: int) -> nn.Module:
    from monai.networks.nets import DynUNet

    strides = [1] + [2] * halvings
    filters = [width * min(2**level, MAX_FACTOR) for level in range(halvings + 1)]
    kernels = [3] * len(strides)
    network: nn.Module = DynUNet(2, 3, classes, kernels, strides, strides[1:], filters=filters)
    return network


def _segresnet(width: int, classes: int, halvings: int) -> nn.Module:
    from monai.networks.nets import SegResNet

    blocks = (1, 2, 2, 4)  # MONAI's default
    assert len(blocks) == halvings + 1, "one group of blocks per level"
    groups = {"num_groups": math.gcd(8, width)}
    network: nn.Module = SegResNet(2, width, 3, classes, blocks_down=blocks, norm=("GROUP", groups))
    return network


def _nnunet_halvings(crop: int) -> int:
    return max(1, min(MAX_HALVINGS, int(math.log2(crop / MIN_DEEPEST_SIDE))))


class Network(StrEnum):
    """The names of `ARCHITECTURES`."""

    DYNUNET = "dynunet"
    SEGRESNET = "segresnet"


ARCHITECTURES = {
    Network.DYNUNET: Architecture(_dynunet, 1, _nnunet_halvings),
    Network.SEGRESNET: Architecture(_segresnet, 4, lambda crop: 3),
}


@dataclass(frozen=True)
class NetworkSpec:
    """A network of `ARCHITECTURES` of a width, for the crops and classes of a configuration."""

    name: Network
    width: int
    classes: int
    halvings: int

    @classmethod
    def of(cls, name: Network, width: int, config: Config) -> NetworkSpec:
        halvings = ARCHITECTURES[name].halvings(config.augment.crop)
        return cls(name, width, config.network.classes, halvings)

    def build(self, seed: int) -> BaselineSegmentor:
        """The network with MONAI's initial weights, as a function of the seed."""
        return build_with_seed(lambda: BaselineSegmentor(self), seed, initialise=False)

    def num_parameters(self) -> int:
        with torch.device("meta"):  # allocates nothing
            return count_parameters(BaselineSegmentor(self))


class BaselineSegmentor(Segmentor):
    """A network of MONAI in the place of S.

    Its logistic is the plain sigmoid, as long as k is 1. The network needs sides that can be halved
    exactly, so other images are padded by reflection, and the maps are cut.
    """

    def __init__(self, spec: NetworkSpec):
        nn.Module.__init__(self)  # not S's own blocks
        self.network = ARCHITECTURES[spec.name].build(spec.width, spec.classes, spec.halvings)
        self.multiple = 2**spec.halvings
        self.logistic = AdaptiveLogistic()

    def logits(self, x: Tensor) -> Tensor:
        """Maps [B, 3, H, W] in [0, 1] to [B, classes, H, W], the input of the logistic."""
        height, width = x.shape[2:]
        right, bottom = -width % self.multiple, -height % self.multiple
        padded = F.pad(x, (0, right, 0, bottom), mode="reflect") if right or bottom else x
        z: Tensor = self.network(padded)[..., :height, :width]
        return z


def require_monai() -> None:
    """Raises UsageError, which says what to install, if MONAI is missing."""
    if find_spec("monai") is None:
        raise UsageError(
            "baselines need monai, which is not installed; "
            "pip install -r baselines/requirements.txt"
        )


def width_of_parameters(name: Network, config: Config) -> int:
    """The width at which a network has about as many parameters as S of the configuration."""
    with torch.device("meta"):
        wanted = count_parameters(Segmentor(config.network))
    return closest_width(name, wanted, lambda w: NetworkSpec.of(name, w, config).num_parameters())


def closest_width(name: Network, wanted: float, size: Callable[[int], float]) -> int:
    """The width whose size is closest to `wanted`, as a ratio.

    Args:
        size: of a width, with which it grows.

    Raises:
        UsageError: no width is large enough.
    """
    step = ARCHITECTURES[name].width_step
    sizes: dict[int, float] = {}

    def is_enough(number: int) -> bool:
        sizes[number] = size(number * step)
        return sizes[number] >= wanted

    high = 1
    while not is_enough(high):
        high *= 2
        if high * step > MAX_WIDTH:
            raise UsageError(
                f"--network {name}: a width of {MAX_WIDTH} is still smaller than S; use a smaller "
                "network.width"
            )
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return step * min(
        (number for number in (low, high) if number),
        key=lambda number: abs(math.log(sizes[number] / wanted)),
    )

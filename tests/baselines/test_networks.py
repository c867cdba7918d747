"""The width that makes a network as large as another, and MONAI's networks as segmentors."""

from __future__ import annotations

import pytest
import torch

from baselines.networks import Network, NetworkSpec, closest_width, width_of_parameters
from segan.config import Config
from segan.errors import UsageError
from segan.networks.blocks import count_parameters
from segan.networks.segmentor import build_segmentor
from segan.training.ema import EMA


def configure(**overrides: int) -> Config:
    return Config().with_overrides({key.replace("__", "."): v for key, v in overrides.items()})


@pytest.fixture
def monai() -> None:
    pytest.importorskip("monai", reason="MONAI is not installed: baselines/requirements.txt")


@pytest.mark.parametrize(
    ("network", "wanted", "width"),
    [
        (Network.DYNUNET, 49, 7),
        (Network.DYNUNET, 54, 7),  # 49 is closer than 64, as a ratio
        (Network.DYNUNET, 57, 8),
        (Network.DYNUNET, 0.1, 1),
        (Network.SEGRESNET, 49, 8),  # of 4 and 8
        (Network.SEGRESNET, 1, 4),
        (Network.SEGRESNET, 150, 12),
    ],
)
def test_the_closest_width_by_hand(network: Network, wanted: float, width: int) -> None:
    assert closest_width(network, wanted, lambda w: w**2) == width


def test_no_width_is_large_enough() -> None:
    with pytest.raises(UsageError, match=r"still smaller than S; use a smaller network\.width"):
        closest_width(Network.DYNUNET, 1e9, lambda w: w**2)


@pytest.mark.usefixtures("monai")
@pytest.mark.parametrize("network", Network)
@pytest.mark.parametrize(("width", "crop"), [(8, 64), (16, 128), (64, 128)])
def test_parameters_are_about_those_of_s(network: Network, width: int, crop: int) -> None:
    config = configure(network__width=width, augment__crop=crop)
    spec = NetworkSpec.of(network, width_of_parameters(network, config), config)
    with torch.device("meta"):
        wanted = count_parameters(build_segmentor(config.network))
    assert spec.num_parameters() == pytest.approx(wanted, rel=0.1)


@pytest.mark.usefixtures("monai")
@pytest.mark.parametrize("network", Network)
def test_maps_have_the_size_of_any_frame(network: Network) -> None:
    config = configure(augment__crop=64, network__classes=2)
    segmentor = NetworkSpec.of(network, 4, config).build(seed=0).eval()
    for height, width in ((64, 64), (68, 90), (135, 180), (33, 34)):
        maps = segmentor(torch.rand(2, 3, height, width))
        assert maps.shape == (2, 2, height, width)
        assert 0 <= maps.min() < maps.max() <= 1


@pytest.mark.usefixtures("monai")
@pytest.mark.parametrize("network", Network)
def test_initial_weights_depend_on_the_seed_alone(network: Network) -> None:
    spec = NetworkSpec.of(network, 4, configure(augment__crop=64))
    first, again, other = (spec.build(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.usefixtures("monai")
def test_the_ema_averages_a_tensor_that_two_modules_share_once() -> None:
    """DynUNet names its blocks twice."""
    segmentor = NetworkSpec.of(Network.DYNUNET, 1, configure(augment__crop=64)).build(seed=0)
    weights = dict(segmentor.named_parameters())
    assert len(segmentor.state_dict()) > len(weights) + 1
    before = {name: weight.clone() for name, weight in weights.items()}
    ema = EMA(segmentor, 0.1)
    with torch.no_grad():
        for weight in weights.values():
            weight.add_(1)
    ema.update_parameters(segmentor)
    for name, averaged in ema.network.named_parameters():
        torch.testing.assert_close(averaged.data, before[name] + 0.9)

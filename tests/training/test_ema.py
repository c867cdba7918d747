"""The EMA of S's weights, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from segan.config import NetworkConfig
from segan.networks.segmentor import Segmentor, build_segmentor
from segan.training.ema import EMA


def fill(segmentor: Segmentor, value: float) -> None:
    with torch.no_grad():
        for tensor in segmentor.state_dict().values():
            tensor.fill_(value)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        # The decay of a step is at most (1 + n) / (10 + n): 2/11, then 3/12.
        (0.9, [9 / 11 * 1.0, 3 / 12 * (9 / 11) + 9 / 12 * 3.0]),
        (0.1, [0.9 * 1.0, 0.1 * 0.9 + 0.9 * 3.0]),
    ],
)
def test_two_steps_by_hand(decay: float, expected: list[float]) -> None:
    segmentor = build_segmentor(NetworkConfig(width=1))
    fill(segmentor, 0.0)
    ema = EMA(segmentor, decay)
    for value, found in zip((1.0, 3.0), expected, strict=True):
        fill(segmentor, value)
        ema.update_parameters(segmentor)
        state = ema.network.state_dict()
        assert state["out.weight"].mean().item() == pytest.approx(found)
        norm = next(name for name in state if name.endswith("running_var"))
        assert state[norm].mean().item() == pytest.approx(found)
        assert state["logistic.k"].item() == value  # S's own


def test_the_segmentor_is_not_changed() -> None:
    segmentor = build_segmentor(NetworkConfig(width=1))
    before = {name: tensor.clone() for name, tensor in segmentor.state_dict().items()}
    ema = EMA(segmentor, 0.9)
    ema.update_parameters(segmentor)
    assert all(torch.equal(before[n], t) for n, t in segmentor.state_dict().items())
    assert all(parameter.requires_grad for parameter in segmentor.parameters())
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())

"""The adaptive logistic, Eq. 3, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segan.config import NetworkConfig
from segan.networks.logistic import AdaptiveLogistic
from segan.networks.segmentor import build_segmentor

K_VALUES = st.floats(0.05, 1.0)
LOGITS = st.floats(-2.0, 2.0)


def logistic(z: float, k: float) -> float:
    return AdaptiveLogistic(k)(torch.tensor(z, dtype=torch.float64)).item()


@pytest.mark.parametrize(
    ("z", "k", "p"),
    [
        (0.0, 1.0, 0.5),
        (0.0, 0.3, 0.5),
        (math.log(3), 1.0, 0.75),  # 1 / (1 + 1/3)
        (-math.log(3), 1.0, 0.25),  # 1 / (1 + 3)
        (math.log(3) / 2, 0.5, 0.75),  # z / k is ln 3 again
        (0.3 * math.log(9), 0.3, 0.9),  # 1 / (1 + 1/9)
    ],
)
def test_values_by_hand(z: float, k: float, p: float) -> None:
    assert logistic(z, k) == pytest.approx(p, abs=1e-6)


def test_k_of_1_is_the_sigmoid() -> None:
    z = torch.linspace(-6, 6, 25)
    assert torch.equal(AdaptiveLogistic()(z), torch.sigmoid(z))


@pytest.mark.parametrize("k", [1.0, 0.5, 0.3])
def test_slope_at_0_is_a_quarter_of_1_over_k(k: float) -> None:
    z = torch.zeros(1, requires_grad=True)
    AdaptiveLogistic(k)(z).backward()
    assert z.grad.item() == pytest.approx(1 / (4 * k), rel=1e-6)


@given(LOGITS, K_VALUES, K_VALUES)
@settings(max_examples=50)
def test_a_smaller_k_is_sharper(z: float, one: float, other: float) -> None:
    sharp, soft = min(one, other), max(one, other)
    assert abs(logistic(z, sharp) - 0.5) >= abs(logistic(z, soft) - 0.5) - 1e-12


@given(LOGITS, K_VALUES)
@settings(max_examples=50)
def test_turned_about_one_half(z: float, k: float) -> None:
    assert logistic(-z, k) == pytest.approx(1 - logistic(z, k), abs=1e-12)


def test_k_travels_with_the_weights() -> None:
    one, other = (build_segmentor(NetworkConfig(width=1)) for _ in range(2))
    one.logistic.set_k(0.25)
    other.load_state_dict(one.state_dict())
    assert other.logistic.k.item() == 0.25
    assert other.logistic(torch.tensor(0.25)).item() == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("k", [0.0, -1.0])
def test_k_must_be_positive(k: float) -> None:
    with pytest.raises(AssertionError, match="k must be positive"):
        AdaptiveLogistic().set_k(k)

"""The losses, worked out by hand, and the properties of a distance."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segan.config import LossConfig
from segan.losses import (
    AdversarialLoss,
    cross_entropy,
    dice_loss,
    multi_scale_l1,
    weighted_segmentor_loss,
)

REDUCTIONS = ["concatenated", "per_level"]
CODE_WEIGHTS = (1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 4.0)

# Seven levels of one image; their distances from zero sum to 3, 4, 1, 1, 1, 1, 2 over 2, 1, 1, 1,
# 1, 1, 1 elements.
LEVELS = [[1.0, -2.0], [4.0], [1.0], [-1.0], [1.0], [1.0], [-2.0]]


def make_level(values: list[float]) -> Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


def zero_levels(levels: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) for x in levels]


def random_levels(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, 8, 8), (2, 2, 4, 4), (2, 4, 2, 2)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize(
    ("reduction", "weights", "expected"),
    [
        ("concatenated", None, 13 / 8),  # 3+4+1+1+1+1+2 over 8 elements
        ("per_level", None, 11.5 / 7),  # 3/2+4+1+1+1+1+2 over 7 levels
        ("concatenated", CODE_WEIGHTS, 23 / 8),  # 3+4+2+2+2+2+8
        ("per_level", CODE_WEIGHTS, 21.5 / 7),  # 3/2+4+2+2+2+2+8
    ],
)
def test_both_reductions_by_hand(
    reduction: str, weights: tuple[float, ...] | None, expected: float
) -> None:
    levels = [make_level(values) for values in LEVELS]
    loss = multi_scale_l1(
        levels, zero_levels(levels), LossConfig(reduction=reduction, level_weights=weights)
    )
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_mean_over_images(reduction: str) -> None:
    # An image at distance 1 and one at 3, in each of two levels: 2 on average.
    levels = [torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).repeat(1, 1, 1, n) for n in (4, 1)]
    loss = multi_scale_l1(levels, zero_levels(levels), LossConfig(reduction=reduction))
    assert loss.item() == pytest.approx(2.0)


def test_levels_must_pair_up() -> None:
    levels = random_levels(0)
    with pytest.raises(AssertionError, match="same levels"):
        multi_scale_l1(levels, levels[:2], LossConfig())


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(one=st.integers(0, 99), other=st.integers(0, 99), scale=st.sampled_from([0.25, 2.0, 8.0]))
@settings(max_examples=20)
def test_it_is_a_distance(reduction: str, one: int, other: int, scale: float) -> None:
    a, b, config = random_levels(one), random_levels(other), LossConfig(reduction=reduction)
    there = multi_scale_l1(a, b, config).item()
    assert there == multi_scale_l1(b, a, config).item()
    assert (there == 0) == (one == other)
    scaled = multi_scale_l1([scale * x for x in a], [scale * x for x in b], config).item()
    assert scaled == scale * there  # exactly so for a power of two


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_detached_truth_gets_no_gradient(reduction: str) -> None:
    predicted = [x.requires_grad_() for x in random_levels(0)]
    truth = [x.requires_grad_() for x in random_levels(1)]
    multi_scale_l1(
        predicted, [t.detach() for t in truth], LossConfig(reduction=reduction)
    ).backward()
    assert all(t.grad is None for t in truth)
    assert all(p.grad.abs().min() > 0 for p in predicted)


def test_half_precision_is_summed_in_single() -> None:
    # 65 536 ones overflow a float16 sum, whose greatest value is 65 504.
    many = [torch.ones(1, 1, 256, 256, dtype=torch.float16)]
    loss = multi_scale_l1(many, zero_levels(many), LossConfig())
    assert loss.dtype == torch.float32
    assert loss.item() == 1.0


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        # 1 - (2 * 1.5 + 1) / (2 + 2 + 1): p and t meet in 1 + 0.5, each sums to 2.
        ([1.0, 0.0, 0.5, 0.5], [1.0, 0.0, 1.0, 0.0], 0.2),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], 0.0),  # 1 - (0 + 1) / (0 + 1)
        ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], 0.8),  # 1 - 1 / (4 + 1)
        ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], 0.0),  # 1 - (4 + 1) / (4 + 1)
    ],
)
def test_dice_by_hand(predicted: list[float], truth: list[float], expected: float) -> None:
    loss = dice_loss(make_level(predicted), make_level(truth))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 1, 1, 4), (1, 2, 1, 4)], ids=["images", "classes"])
def test_dice_takes_images_and_classes_apart(shape: tuple[int, ...]) -> None:
    predicted = torch.tensor([1.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]).reshape(shape)
    truth = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]).reshape(shape)
    # The first and third of the cases above: (0.2 + 0.8) / 2.
    assert dice_loss(predicted, truth).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("predicted", "truth", "expected"),
    [
        # -(log 0.5 + log 0.25 + log 0.75 + log 1) / 4, the second and third of 1 - p.
        ([0.5, 0.75, 0.25, 1.0], [1.0, 0.0, 0.0, 1.0], math.log(2 * 4 / 0.75) / 4),
        ([1.0, 0.0], [1.0, 0.0], 0.0),
        ([1.0, 0.0], [0.0, 1.0], -math.log(1e-7)),  # no further than this, and finite
    ],
)
def test_cross_entropy_by_hand(predicted: list[float], truth: list[float], expected: float) -> None:
    loss = cross_entropy(make_level(predicted), make_level(truth))
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_the_papers_loss_is_the_same_for_both() -> None:
    levels = [make_level(values) for values in LEVELS]
    loss = AdversarialLoss(LossConfig())
    assert loss.enabled
    expected = multi_scale_l1(levels, zero_levels(levels), LossConfig())
    assert torch.equal(loss.critic_objective(levels, zero_levels(levels)), expected)
    assert torch.equal(loss.segmentor_term(levels, zero_levels(levels)), expected)


def test_the_classic_gan_loss_by_hand() -> None:
    # C holds two predictions for true with probability 1/2 and 1/4, the truth with 3/4 and 1/2.
    scores = [torch.tensor([0.0, -math.log(3)])], [torch.tensor([math.log(3), 0.0])]
    loss = AdversarialLoss(LossConfig(critic="scalar"))
    # (log 3/4 + log 1/2) / 2 of the truth and (log (1 - 1/2) + log (1 - 1/4)) / 2 of the others.
    raised = loss.critic_objective(*scores).item()
    assert raised == pytest.approx(math.log(3 / 4) + math.log(1 / 2), rel=1e-6)
    # -(log 1/2 + log 1/4) / 2.
    lowered = loss.segmentor_term(*scores).item()
    assert lowered == pytest.approx(math.log(8) / 2, rel=1e-6)


def test_the_terms_of_the_segmentor_loss_are_weighted() -> None:
    predicted, truth = make_level([0.5, 0.5]), make_level([1.0, 0.0])  # a cross-entropy of log 2
    adversarial, config = (
        torch.tensor(3.0),
        LossConfig(adversarial_weight=0.5, cross_entropy_weight=2),
    )
    assert weighted_segmentor_loss(adversarial, predicted, truth, LossConfig()).item() == 3
    assert weighted_segmentor_loss(adversarial, predicted, truth, config).item() == pytest.approx(
        1.5 + 2 * math.log(2)
    )
    assert weighted_segmentor_loss(None, predicted, truth, config).item() == pytest.approx(
        2 * math.log(2)
    )
    assert weighted_segmentor_loss(None, predicted, truth, LossConfig()).item() == 0

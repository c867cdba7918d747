"""k and the learning rate over a run, by hand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segan.config import LogisticConfig, OptimizerConfig
from segan.training.schedule import learning_rates, logistic_k

STRETCHED = LogisticConfig(stretch_to_run=True)


@pytest.mark.parametrize(
    ("epoch", "k"),
    [
        (0, 1.0),
        (24, 1.0),
        (25, 0.9),
        (49, 0.9),
        (50, 0.81),
        (75, 0.729),
        (275, 0.31381059609),  # 275 / 25 = 11 decays: 0.9 ** 11
        (299, 0.31381059609),
        (300, 0.3),  # 0.9 ** 12 = 0.2824 is below the least k
        (1000, 0.3),
    ],
)
def test_k_of_the_paper(epoch: int, k: float) -> None:
    assert logistic_k(epoch, 300, LogisticConfig()) == pytest.approx(k, abs=1e-12)


@pytest.mark.parametrize(
    ("epochs", "decays"),
    # 12 decays take 1 below 0.3 (0.9 ** 11 = 0.314). Epoch e of n stands at 12 e / (n - 1).
    [
        (1, [0]),
        (2, [0, 12]),
        (4, [0, 4, 8, 12]),
        (8, [0, 2, 3, 5, 7, 9, 10, 12]),  # 12 / 7 = 1.71, 3.43, 5.14, 6.86, 8.57, 10.29
        (13, list(range(13))),
    ],
)
def test_k_stretched_to_the_run(epochs: int, decays: list[int]) -> None:
    ks = [logistic_k(epoch, epochs, STRETCHED) for epoch in range(epochs)]
    assert ks == pytest.approx([max(0.3, 0.9**n) for n in decays])


@pytest.mark.parametrize(
    "needed",
    # 0.9 ** needed is reached by that many decays, whatever the logarithms' last bit says.
    range(1, 8),
)
def test_rounding_adds_no_decay(needed: int) -> None:
    config = LogisticConfig(stretch_to_run=True, final_k=round(0.9**needed, 7))
    ks = [logistic_k(epoch, needed + 1, config) for epoch in range(needed + 1)]
    assert ks == pytest.approx([0.9**n for n in range(needed + 1)])


@given(st.integers(1, 400))
@example(13)
@settings(max_examples=60)
def test_stretched_k_falls_from_initial_to_final_k(epochs: int) -> None:
    ks = [logistic_k(epoch, epochs, STRETCHED) for epoch in range(epochs)]
    assert ks[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(ks))
    assert min(ks) >= 0.3
    if epochs > 1:
        assert ks[-1] == 0.3
        assert len(set(ks)) == min(epochs, 13)


@given(st.integers(13, 400))
@example(25)
@settings(max_examples=60)
def test_stretched_decays_are_spread_evenly(epochs: int) -> None:
    ks = [logistic_k(epoch, epochs, STRETCHED) for epoch in range(epochs)]
    # The first and last k have half a stretch each.
    between = [ks.count(k) for k in set(ks) - {ks[0], ks[-1]}]
    assert max(between) - min(between) <= 1


@pytest.mark.parametrize("stretch", [False, True])
def test_a_constant_k(stretch: bool) -> None:
    config = LogisticConfig(initial_k=0.5, final_k=0.5, stretch_to_run=stretch)
    assert {logistic_k(epoch, 60, config) for epoch in range(60)} == {0.5}


@pytest.mark.parametrize(
    ("samples", "rate"),
    # 0.003 times the share that is left of 2000 x 300 = 600 000 images.
    [(0, 0.003), (150_000, 0.00225), (300_000, 0.0015), (599_975, 1.25e-7), (600_000, 0.0)],
)
def test_learning_rate_falls_in_a_line(samples: int, rate: float) -> None:
    found = learning_rates(samples, 600_000, 1, OptimizerConfig())
    assert found == pytest.approx((rate, rate), rel=1e-9)


@pytest.mark.parametrize(
    ("samples", "share"),
    # Of 1000 images the first 200 rise: 0, 50/200 and 100/200 of what is left of the line.
    [(0, 0.0), (50, 0.25 * 0.95), (100, 0.5 * 0.9), (200, 0.8), (500, 0.5), (1000, 0.0)],
)
def test_a_warm_up_rises_under_the_line(samples: int, share: float) -> None:
    found = learning_rates(samples, 1000, 1, OptimizerConfig(warmup_fraction=0.2))
    assert found == pytest.approx((0.003 * share, 0.003 * share))


def test_constant_learning_rate() -> None:
    config = OptimizerConfig(schedule="constant")
    assert {learning_rates(samples, 100, 1, config) for samples in (0, 50, 100)} == {(0.003, 0.003)}


@pytest.mark.parametrize(("rule", "rate"), [("none", 0.003), ("linear", 0.012), ("sqrt", 0.006)])
def test_lr_scaling_with_four_workers(rule: str, rate: float) -> None:
    config = OptimizerConfig(lr_scaling=rule)
    assert learning_rates(0, 100, 4, config) == pytest.approx((rate, rate))
    assert learning_rates(50, 100, 4, config) == pytest.approx((rate / 2, rate / 2))
    assert learning_rates(0, 100, 1, config) == pytest.approx((0.003, 0.003))


def test_the_critics_own_rate_follows_the_same_schedule() -> None:
    config = OptimizerConfig(critic_rate=0.001, warmup_fraction=0.2, lr_scaling="linear")
    # Twice the rates for two workers; half of the warm-up, and 0.9 of the line are left at 100.
    assert learning_rates(100, 1000, 2, config) == pytest.approx((0.0027, 0.0009))

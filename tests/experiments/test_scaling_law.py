"""The law of the scaling study: it is found again in values that follow it."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.scaling_law import Point, ScalingLaw, fit_law, forecast
from segan.errors import UsageError

LAW = ScalingLaw(floor=0.2, log_a=np.log(0.3), alpha=0.5, log_b=np.log(0.4), beta=0.8)


def points_of(law: ScalingLaw, noise: float = 0.0, seed: int = 0) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(width, epochs, float(law.jaccard(width, epochs)) + noise * rng.standard_normal())
        for width in (2, 4, 8, 16)
        for epochs in (10, 30, 100)
    ]


def test_the_law_by_hand() -> None:
    """1 - 0.2 - 0.3 / sqrt(4) - 0.4 / 1."""
    assert LAW.jaccard(4, 1) == pytest.approx(0.25)


def test_points_on_a_law_give_the_law_and_a_forecast_without_width() -> None:
    found = fit_law(points_of(LAW))
    interval = forecast(found, points_of(LAW), 64, 300)
    assert found.floor == pytest.approx(LAW.floor, abs=1e-3)
    assert (found.alpha, found.beta) == pytest.approx((LAW.alpha, LAW.beta), rel=1e-2)
    assert interval.mean == pytest.approx(float(LAW.jaccard(64, 300)), abs=1e-3)
    assert interval.high - interval.low < 1e-3


def test_the_interval_of_noisy_points_holds_the_truth_and_widens_with_the_noise() -> None:
    truth = float(LAW.jaccard(64, 300))
    little, much = (
        forecast(fit_law(points), points, 64, 300)
        for points in (points_of(LAW, 0.003), points_of(LAW, 0.01))
    )
    assert little.low < truth < little.high
    assert much.low < truth < much.high
    assert much.high - much.low > little.high - little.low


def test_too_few_points_are_refused() -> None:
    few = [point for point in points_of(LAW) if point.width < 8]
    with pytest.raises(UsageError, match=r"^2 widths and 3 numbers of epochs: .*more --widths"):
        fit_law(few)

"""Bootstrap intervals by hand and by properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.evaluation import bootstrap
from segan.evaluation.bootstrap import (
    NUM_RESAMPLES,
    Interval,
    interval_of,
    mean_interval,
    paired_interval,
    resample_sums,
)

scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_equal_scores() -> None:
    assert mean_interval([0.75] * 5) == Interval(0.75, 0.75, 0.75)


def test_two_images() -> None:
    """A resample of 0 and 1 has the mean 0, 0.5 or 1 with probability 1/4, 1/2 and 1/4."""
    assert mean_interval([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)


def test_many_images_agree_with_the_normal_distribution() -> None:
    """Half ones: the standard error is sqrt(0.25 / 400) = 0.025, and 1.96 * 0.025 = 0.049."""
    found = mean_interval([0.0, 1.0] * 200)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.451, abs=0.003)
    assert found.high == pytest.approx(0.549, abs=0.003)


def test_constant_difference_has_no_width() -> None:
    """The baseline is 0.1 worse on every image."""
    values = np.linspace(0.2, 1.0, 9)
    found = paired_interval(values, values - 0.1)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


@given(scores)
def test_interval_lies_within_the_scores(values: list[float]) -> None:
    found = mean_interval(values)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12
    assert found == mean_interval(values)


def test_result_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 1, 7)
    expected = mean_interval(values)
    monkeypatch.setattr(bootstrap, "INDICES_PER_BATCH", 700)
    assert mean_interval(values) == expected


def test_different_numbers_of_images() -> None:
    with pytest.raises(AssertionError, match="against"):
        paired_interval([0.5], [0.5, 0.6])


def test_resampled_sums_have_the_interval_of_the_mean() -> None:
    values = np.random.default_rng(1).random(50)
    expected = mean_interval(values)
    means = resample_sums(values[:, None])[:, 0] / 50
    found, samples = interval_of(means), means[1:]
    assert len(samples) == NUM_RESAMPLES
    assert found.mean == pytest.approx(expected.mean)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.005)


def test_resampled_sums_draw_whole_images() -> None:
    counts = np.array([[1, 10], [2, 20], [5, 50]])
    sums = resample_sums(counts)
    np.testing.assert_array_equal(sums[:, 1], 10 * sums[:, 0])
    drawn = itertools.product((1, 2, 5), repeat=3)
    assert set(sums[:, 0]) <= {float(sum(images)) for images in drawn}

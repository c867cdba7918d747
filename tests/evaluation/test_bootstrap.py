"""Intervals of means: by hand where they can be, and as they must be in general."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan.evaluation import bootstrap
from segan.evaluation.bootstrap import Interval, mean_interval, paired_interval

scores = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def test_of_equal_scores_nothing_is_uncertain() -> None:
    assert mean_interval([0.75] * 5) == Interval(0.75, 0.75, 0.75)


def test_two_images() -> None:
    """A resample of 0 and 1 has the mean 0, 0.5 or 1, a quarter, a half and a quarter of them."""
    assert mean_interval([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)


def test_many_images_as_the_normal_distribution_has_it() -> None:
    """Half ones: the mean's deviation is sqrt(0.25 / 400) = 0.025, 1.96 of them are 0.049."""
    found = mean_interval([0.0, 1.0] * 200)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.451, abs=0.003)
    assert found.high == pytest.approx(0.549, abs=0.003)


def test_a_pair_is_surer_than_its_two() -> None:
    """The rival is 0.1 worse on every image: however much these differ, that is certain."""
    values = np.linspace(0.2, 1.0, 9)
    found = paired_interval(values, values - 0.1)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


@given(scores)
def test_it_lies_among_the_scores(values: list[float]) -> None:
    found = mean_interval(values)
    assert min(values) - 1e-12 <= found.low <= found.high <= max(values) + 1e-12
    assert found == mean_interval(values)


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.linspace(0, 1, 7)
    whole = mean_interval(values)
    monkeypatch.setattr(bootstrap, "INDICES_PER_BATCH", 700)
    assert mean_interval(values) == whole


def test_not_the_same_images() -> None:
    with pytest.raises(AssertionError, match="against"):
        paired_interval([0.5], [0.5, 0.6])

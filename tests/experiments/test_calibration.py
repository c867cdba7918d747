"""Thresholds, temperature and epochs of models whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.calibration import (
    calibrate,
    calibration_error,
    choices_of_epoch,
    fit_temperature,
    halves,
    jaccard_by_members,
    jaccard_curves,
    transfer,
)
from segan.inference.thresholds import threshold_index


def test_a_curve_by_hand() -> None:
    """Lesion pixels 0.9 and 0.4, skin 0.6 and 0.1: 2 of 3 above 0.35, 1 of 3 above 0.5 and 0.7."""
    maps = np.array([0.9, 0.4, 0.6, 0.1], np.float32).reshape(1, 1, 2, 2)
    truth = np.array([1, 1, 0, 0], np.uint8).reshape(1, 1, 2, 2)
    curve = jaccard_curves(maps, truth)[0]
    found = [curve[threshold_index(t)] for t in (0.35, 0.5, 0.7)]
    assert found == pytest.approx([2 / 3, 1 / 3, 1 / 2])


def test_halves_are_disjoint_and_stand_both_ways() -> None:
    pairs = list(halves(5, 3))
    assert len(pairs) == 6
    for here, there in pairs:
        assert sorted([*here, *there]) == [0, 1, 2, 3, 4]
    assert pairs[0][0] is pairs[1][1]


def test_a_threshold_that_suits_all_images_loses_nothing_elsewhere() -> None:
    curves = np.tile(np.linspace(0.2, 0.8, 199), (10, 1))
    found = transfer(curves)
    assert (found.chosen, found.loss.mean, found.loss.high) == pytest.approx((0.8, 0, 0))
    assert found.middle == pytest.approx(0.5)


def test_images_that_disagree_about_the_threshold_lose_elsewhere() -> None:
    """Each of two images is right at one threshold only: chosen on one it is wrong on the other."""
    curves = np.zeros((2, 199))
    curves[0, 10] = curves[1, 20] = 1
    found = transfer(curves)
    assert (found.chosen, found.loss.mean) == (0, 1)


def test_a_temperature_that_was_put_in_is_found_and_taken_out() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (8, 1, 50, 50))
    lesion = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    assert fit_temperature(3 * logits, lesion) == pytest.approx(3, rel=0.05)
    sharpened = (1 / (1 + np.exp(-3 * logits))).astype(np.float32)
    found = calibrate(sharpened, lesion)
    assert found.temperature == pytest.approx(3, rel=0.1)
    assert found.cross_entropy[1] < found.cross_entropy[0]
    assert found.error[1] < 0.02 < found.error[0]


def test_the_calibration_error_by_hand() -> None:
    """Four pixels of probability one half, of which three are lesion: 3/4 - 1/2."""
    assert calibration_error(np.zeros(4), np.array([1, 1, 1, 0])) == pytest.approx(0.25)


def test_members_that_err_at_different_pixels_gain() -> None:
    """Two members that miss another half of the lesion each: their mean finds all of it."""
    rng = np.random.default_rng(0)
    truth = (rng.random((6, 1, 8, 8)) < 0.5).astype(np.uint8)
    left, right = truth * np.float32(0.9), truth * np.float32(0.9)
    left[..., :4], right[..., 4:] = 0, 0
    one, both = jaccard_by_members([left.astype(np.float32), right.astype(np.float32)], truth)
    assert one < 0.6
    assert both == pytest.approx(1)


def test_a_lucky_epoch_is_told_from_a_good_one() -> None:
    """0.9 alone between 0.5 and 0.6 has a running mean of 2/3; the end has 0.8."""
    found = choices_of_epoch([0.5, 0.9, 0.6, 0.8, 0.8, 0.8])
    assert found == pytest.approx(
        {"best": 0.9, "at the best": 2 / 3, "at the best running mean": 0.8, "at the last": 0.8}
    )

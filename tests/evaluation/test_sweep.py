"""The sweep compared with scoring each threshold separately."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segan.evaluation.metrics import SCORE_NAMES, Confusion, confusion
from segan.evaluation.sweep import Sweep
from segan.inference.thresholds import THRESHOLDS

SEEDS = st.integers(0, 2**31)


def random_maps(seed: int, images: int, classes: int = 1) -> tuple[Tensor, Tensor]:
    """Random maps; half of their values are 0, 1 or a threshold in float32."""
    rng = np.random.default_rng(seed)
    shape = (images, classes, 5, 6)
    exact = rng.choice(np.float32([0, *THRESHOLDS, 1]), shape)
    probability = np.where(rng.random(shape) < 0.5, exact, rng.random(shape, np.float32))
    truth = rng.random(shape) < rng.random((images, classes, 1, 1))
    truth[0] = False  # an image without a lesion
    return torch.from_numpy(probability), torch.from_numpy(truth).byte()


def make_sweep(probability: Tensor, truth: Tensor) -> Sweep:
    sweep = Sweep.empty(probability.shape[1])
    sweep.update(probability, truth)
    return sweep


def sweep_row(probabilities: list[float], truth: list[int]) -> Sweep:
    return make_sweep(
        torch.tensor(probabilities).reshape(1, 1, 1, -1), torch.tensor(truth).reshape(1, 1, 1, -1)
    )


def test_thresholds() -> None:
    assert len(THRESHOLDS) == 199
    assert THRESHOLDS[[0, 79, -1]] == pytest.approx([0.005, 0.4, 0.995])


@given(seed=SEEDS, images=st.integers(1, 4), classes=st.integers(1, 3))
@settings(max_examples=15)
def test_equals_scoring_each_threshold_separately(seed: int, images: int, classes: int) -> None:
    probability, truth = random_maps(seed, images, classes)
    sweep = make_sweep(probability, truth)
    for i, threshold in enumerate(THRESHOLDS):
        above = (probability > np.float32(threshold)).numpy()
        counts = confusion(above, truth.numpy() > 0)
        scores = counts.scores()
        if classes > 1:  # the pixels of all images together
            scores = Confusion(*counts.stack().sum(1)).scores()
        assert list(scores) == list(SCORE_NAMES)
        for name in SCORE_NAMES:
            assert sweep.curve(name)[i] == pytest.approx(scores[name].mean(), abs=1e-12), threshold


@given(seed=SEEDS, cut=st.integers(1, 4))
@settings(max_examples=15)
def test_sweeps_can_be_added(seed: int, cut: int) -> None:
    probability, truth = random_maps(seed, 5, 2)
    whole = make_sweep(probability, truth)
    first, second = (make_sweep(probability[p], truth[p]) for p in (slice(cut), slice(cut, None)))
    in_turn = make_sweep(probability[:cut], truth[:cut])
    in_turn.update(probability[cut:], truth[cut:])
    added = Sweep(
        first.sums + second.sums, first.count + second.count, first.pixels + second.pixels
    )
    for both in (in_turn, added):
        assert both.count == whole.count == 5
        np.testing.assert_allclose(both.sums, whole.sums, atol=1e-12)
        np.testing.assert_array_equal(both.pixels, whole.pixels)


def test_no_images_add_nothing() -> None:
    probability, truth = random_maps(0, 3)
    sweep = make_sweep(probability, truth)
    before = sweep.sums.copy()
    sweep.update(probability[:0], truth[:0])
    assert sweep.count == 3
    np.testing.assert_array_equal(sweep.sums, before)


@given(seed=SEEDS, index=st.integers(0, 198))
@settings(max_examples=50)
def test_saturation_equals_counting_pixels(seed: int, index: int) -> None:
    probability, truth = random_maps(seed, 3, 2)
    p, t, threshold = probability.numpy(), truth.numpy() > 0, THRESHOLDS[index]
    saturated = (p <= np.float32(0.01)) | (p > np.float32(0.99))
    wrong = (p > np.float32(threshold)) != t
    found = make_sweep(probability, truth).saturation_at(threshold)
    assert found["saturated_fraction"] == pytest.approx(saturated.mean())
    expected = (saturated & wrong).sum() / max(wrong.sum(), 1)
    assert found["wrong_saturated_fraction"] == pytest.approx(expected)


def test_saturation_by_hand() -> None:
    # Above 0.5 are 0.999 and 0.6. Wrong are 0.6, 0.005 and 0.4, one of them saturated.
    sweep = sweep_row([0.999, 0.6, 0.005, 0.4, 0.002], [1, 0, 1, 1, 0])
    expected = {"saturated_fraction": 3 / 5, "wrong_saturated_fraction": 1 / 3}
    assert sweep.saturation_at(0.5) == pytest.approx(expected)


def test_saturation_if_no_pixel_is_wrong() -> None:
    found = sweep_row([0.999, 0.2], [1, 0]).saturation_at(0.5)
    assert found == {"saturated_fraction": 0.5, "wrong_saturated_fraction": 0.0}


def test_the_curve_of_one_row_by_hand() -> None:
    curve = sweep_row([0.8, 0.6, 0.2, 0.1], [1, 0, 1, 0]).curve()
    # Above t:   below 0.1 all four, 2/4;   0.1 to 0.2 three, 2/3;   0.2 to 0.6 two, 1/3;
    # 0.6 to 0.8 one of the two lesion pixels, 1/2;   from 0.8 none, 0/2.
    for threshold, expected in (
        (0.005, 1 / 2), (0.095, 1 / 2), (0.1, 2 / 3), (0.195, 2 / 3), (0.2, 1 / 3),
        (0.595, 1 / 3), (0.6, 1 / 2), (0.795, 1 / 2), (0.8, 0), (0.995, 0),
    ):  # fmt: skip
        assert curve[round(threshold * 200) - 1] == pytest.approx(expected), threshold


def test_best_threshold_is_the_middle_of_equal_ones() -> None:
    # From 0.2 to 0.795 only the lesion is above: 120 thresholds, whose middle is 0.2 + 60 / 200.
    sweep = sweep_row([0.8, 0.2], [1, 0])
    assert sweep.best_threshold() == pytest.approx(0.5)
    assert sweep.scores_at(0.5) == {"accuracy": 1.0, "dice": 1.0, "jaccard": 1.0}


def test_single_best_threshold() -> None:
    # 0.3 < p <= 0.305 separates at one threshold only, 0.3.
    assert sweep_row([0.302, 0.3], [1, 0]).best_threshold() == pytest.approx(0.3)


def test_scores_at_the_nearest_threshold() -> None:
    sweep = sweep_row([0.41, 0.2], [1, 0])
    # 0.409 is nearest to 0.41, which 0.41 is not above; 0.4 is below it.
    assert sweep.scores_at(0.409)["jaccard"] == 0.0
    assert sweep.scores_at(0.402)["jaccard"] == 1.0
    # No pixel is above 0.41: half of the pixels are right.
    assert sweep.scores_at(0.41) == {"accuracy": 0.5, "dice": 0.0, "jaccard": 0.0}


def test_classes_have_equal_weight() -> None:
    probability = torch.tensor([[0.9, 0.1], [0.9, 0.9]]).reshape(1, 2, 1, 2)
    truth = torch.tensor([[1, 0], [1, 0]]).reshape(1, 2, 1, 2)
    # At 0.5 the first class scores 1, and the second, with a false positive, 1/2.
    assert make_sweep(probability, truth).scores_at(0.5)["jaccard"] == pytest.approx(0.75)


def test_several_classes_have_their_own_best_thresholds() -> None:
    # Two images of 4 pixels. The first class is separated between 0.2 and 0.4, the second between
    # 0.7 and 0.9; the second image lacks the second class.
    probability = torch.tensor([[[0.4, 0.4, 0.2, 0.1], [0.9, 0.9, 0.7, 0.1]],
                                [[0.4, 0.2, 0.2, 0.2], [0.7, 0.1, 0.1, 0.1]]])  # fmt: skip
    truth = torch.tensor([[[1, 1, 0, 0], [1, 1, 0, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]]])
    sweep = make_sweep(probability.reshape(2, 2, 1, 4), truth.reshape(2, 2, 1, 4))
    first, second = sweep.best_thresholds()
    assert 0.2 <= first < 0.4 <= 0.7 <= second < 0.9
    assert sweep.scores_at((first, second))["jaccard"] == 1
    # At 0.5 the first class is never found. Of the second, two pixels are found and two are wrong:
    # 2/4, although the image that lacks it would score 0 alone and the other 2/3.
    assert [one["jaccard"] for one in sweep.class_scores_at((0.5, 0.5))] == [0, 0.5]
    assert sweep.scores_at(0.5)["jaccard"] == pytest.approx(0.25)
    metrics = sweep.class_metrics(("a", "b"))
    assert metrics["class_thresholds"] == {"a": first, "b": second}
    assert metrics["class_jaccard"] == {"a": 1, "b": 1}


def test_a_model_that_finds_nothing_does_not_score_by_images_without_the_class() -> None:
    # The class is in one of ten images, and its mean over images would be 0.9.
    truth = torch.zeros(10, 2, 1, 4)
    truth[0] = 1
    assert make_sweep(torch.zeros(10, 2, 1, 4), truth).scores_at(0.5)["jaccard"] == 0


def test_image_without_a_lesion() -> None:
    sweep = sweep_row([0.3, 0.1], [0, 0])
    assert sweep.scores_at(0.295)["jaccard"] == 0.0
    assert sweep.scores_at(0.3) == {"accuracy": 1.0, "dice": 1.0, "jaccard": 1.0}


def test_curve_without_images() -> None:
    with pytest.raises(AssertionError, match="no image"):
        Sweep.empty().curve()


def test_half_precision() -> None:
    probability, truth = random_maps(0, 2)
    half = probability.to(torch.bfloat16)
    np.testing.assert_array_equal(
        make_sweep(half, truth).sums, make_sweep(half.float(), truth).sums
    )

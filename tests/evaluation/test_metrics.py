"""Accuracy, Dice and Jaccard by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segan.evaluation.metrics import SCORE_NAMES, confusion, threshold_jaccard

Rows = list[list[int]]


def mask(rows: Rows) -> np.ndarray:
    return np.array(rows, dtype=bool)


@pytest.mark.parametrize(
    ("predicted", "truth", "counts", "scores"),
    [
        # tp, fp, fn, tn; then (tp + tn) / all, 2 tp / (2 tp + fp + fn), tp / (tp + fp + fn).
        ([[1, 1], [0, 0]], [[1, 0], [1, 0]], (1, 1, 1, 1), (1 / 2, 1 / 2, 1 / 3)),
        ([[1, 1], [1, 1]], [[1, 0], [0, 0]], (1, 3, 0, 0), (1 / 4, 2 / 5, 1 / 4)),
        ([[0, 0], [0, 0]], [[1, 0], [0, 0]], (0, 0, 1, 3), (3 / 4, 0, 0)),
        ([[1, 0], [0, 0]], [[0, 0], [0, 0]], (0, 1, 0, 3), (3 / 4, 0, 0)),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]], (0, 0, 0, 4), (1, 1, 1)),
        ([[1, 1], [1, 1]], [[1, 1], [1, 1]], (4, 0, 0, 0), (1, 1, 1)),
        (
            [[1, 1, 0], [1, 1, 0], [0, 0, 0]],
            [[0, 1, 1], [0, 1, 1], [0, 1, 0]],
            (2, 2, 3, 2),
            (4 / 9, 4 / 9, 2 / 7),
        ),
    ],
)
def test_by_hand(
    predicted: Rows, truth: Rows, counts: tuple[int, ...], scores: tuple[float, ...]
) -> None:
    found = confusion(mask(predicted), mask(truth))
    assert (
        found.true_positive,
        found.false_positive,
        found.false_negative,
        found.true_negative,
    ) == counts
    values = found.scores()
    assert tuple(values) == SCORE_NAMES == ("accuracy", "dice", "jaccard")
    assert tuple(map(float, values.values())) == pytest.approx(scores)


def test_scores_per_image_and_class() -> None:
    truth = np.zeros((2, 3, 4, 5), dtype=bool)
    predicted = truth.copy()
    truth[1, 2, :2, :2] = True  # 4 pixels
    predicted[1, 2, 0, :4] = True  # 4 pixels, of which 2 are the truth's: 2 / (4 + 4 - 2)
    expected = np.ones((2, 3))
    expected[1, 2] = 1 / 3
    np.testing.assert_allclose(confusion(predicted, truth).scores()["jaccard"], expected)


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"\(2, 2\) against \(2, 3\)"):
        confusion(np.zeros((2, 2), bool), np.zeros((2, 3), bool))


@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50)
def test_identities(seed: int, few: float, many: float) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.random((6, 7)) < few, rng.random((6, 7)) < many
    found = confusion(predicted, truth)
    there, back = found.scores(), confusion(truth, predicted).scores()
    assert there == back
    assert found.true_positive + found.false_negative == truth.sum()
    assert found.false_positive + found.true_negative == (~truth).sum()
    jaccard, dice = float(there["jaccard"]), float(there["dice"])
    assert dice == pytest.approx(2 * jaccard / (1 + jaccard))
    assert (jaccard == 1) == np.array_equal(predicted, truth)


@pytest.mark.parametrize(
    ("predicted", "truth", "sensitivity", "specificity"),
    [
        ([[1, 1], [0, 0]], [[1, 0], [1, 0]], 1 / 2, 1 / 2),
        ([[1, 1], [1, 1]], [[1, 0], [0, 0]], 1, 0),
        ([[0, 0], [0, 0]], [[1, 0], [0, 0]], 0, 1),
        ([[1, 0], [0, 0]], [[0, 0], [0, 0]], 1, 3 / 4),  # no lesion
        ([[1, 0], [0, 0]], [[1, 1], [1, 1]], 1 / 4, 1),  # no skin
    ],
)
def test_sensitivity_and_specificity_by_hand(
    predicted: Rows, truth: Rows, sensitivity: float, specificity: float
) -> None:
    counts = confusion(mask(predicted), mask(truth))
    assert counts.sensitivity() == pytest.approx(sensitivity)
    assert counts.specificity() == pytest.approx(specificity)


def test_a_jaccard_below_the_threshold_counts_as_0() -> None:
    found = threshold_jaccard(np.array([0.0, 0.6499, 0.65, 1.0]))
    np.testing.assert_array_equal(found, [0, 0, 0.65, 1])

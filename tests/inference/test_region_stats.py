"""Statistics of masks, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from segan.inference.predictor import Prediction
from segan.inference.region_stats import RegionStats, region_stats


def make_prediction(rows: list[list[float]], threshold: float = 0.5) -> Prediction:
    probability = np.array(rows, np.float32)
    return Prediction(probability, probability > threshold)


def test_by_hand() -> None:
    # Inside 0.9 + 0.7 over two pixels, outside 0.25: 1.6 / (2 + 0.25) = 0.711111.
    found = region_stats(
        make_prediction([[0, 0, 0, 0], [0, 0.9, 0.7, 0], [0, 0.25, 0, 0], [0, 0, 0, 0]])
    )
    assert found == RegionStats(
        area=2,
        area_fraction=2 / 16,
        num_components=1,
        confidence=0.711111,
        disagreement=None,
        flags="",
    )


def test_an_empty_mask() -> None:
    found = region_stats(make_prediction([[0.1, 0.2], [0.3, 0.4]]))
    assert (found.area, found.num_components, found.confidence) == (0, 0, 0.0)
    assert found.flags == "empty low_confidence"


@pytest.mark.parametrize("at", [(0, 2), (4, 2), (2, 0), (2, 4)])
def test_a_lesion_at_the_border(at: tuple[int, int]) -> None:
    probability = np.zeros((5, 5), np.float32)
    probability[2, 2] = probability[at] = 1
    assert (
        region_stats(Prediction(probability, probability > 0.5)).flags
        == "border multiple_components"
    )


def test_components_are_8_connected() -> None:
    pixels = np.zeros((6, 6), np.float32)
    pixels[1, 1] = pixels[2, 2] = 1
    assert region_stats(Prediction(pixels, pixels > 0.5)).num_components == 1
    pixels[4, 4] = 1
    assert region_stats(Prediction(pixels, pixels > 0.5)).num_components == 2


def test_disagreement_is_one_minus_iou() -> None:
    # The intersection has 2 pixels, the union 5: 1 - 2 / 5.
    masks = [np.array([[a, b, 1, 1, c]], bool) for a, b, c in ((1, 0, 0), (0, 1, 1), (0, 0, 0))]
    whole = make_prediction([[0, 0, 1, 1, 0]])
    assert region_stats(whole, masks).disagreement == pytest.approx(0.6)
    assert region_stats(whole, [np.zeros((1, 5), bool)] * 3).disagreement == 0
    assert region_stats(whole, [masks[0]] * 3).disagreement == 0

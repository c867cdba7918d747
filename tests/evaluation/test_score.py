"""Scores against an archive's masks at the original size."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segan.data.archive.reader import Pair
from segan.errors import RejectedError
from segan.evaluation.score import (
    IMAGE_SCORES,
    compare_scores,
    score_intervals,
    score_pair,
    summarise,
    to_csv,
)
from segan.inference.predictor import Predictor
from tests.inference.models import untrained_predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return untrained_predictor()


@pytest.fixture
def image(tmp_path: Path) -> Image.Image:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (77, 130, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    return image


def make_pair(folder: Path, truth: np.ndarray) -> Pair:
    Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).save(folder / "mask.png")
    return Pair("ISIC_0000000", "test", f"{folder}/image.png", f"{folder}/mask.png")


def test_own_mask_and_its_inverse(predictor: Predictor, image: Image.Image, tmp_path: Path) -> None:
    mask = predictor(image).mask
    assert 0 < mask.mean() < 1
    for truth, value in ((mask, 1.0), (~mask, 0.0)):
        scores = score_pair(predictor, make_pair(tmp_path, truth))
        assert set(scores) == {"id", *IMAGE_SCORES}
        assert {scores[name] for name in IMAGE_SCORES if name != "hd95"} == {value}
        assert (scores["hd95"] == 0) == (value == 1)


def test_empty_truth_by_hand(predictor: Predictor, image: Image.Image, tmp_path: Path) -> None:
    found = predictor(image).mask
    scores = score_pair(predictor, make_pair(tmp_path, np.zeros_like(found)))
    # Every predicted pixel is wrong, and all others are right.
    assert scores["accuracy"] == pytest.approx(1 - found.mean())
    assert (scores["dice"], scores["jaccard"]) == (0.0, 0.0)


@pytest.mark.usefixtures("image")
def test_mask_of_another_size(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(RejectedError, match="130 x 77 pixels, found 77 x 130"):
        score_pair(predictor, make_pair(tmp_path, np.zeros((130, 77), bool)))


def test_the_mean_over_images() -> None:
    found = summarise(make_rows([0.2, 0.6]))
    assert found == {"num_images": 2, **dict.fromkeys(IMAGE_SCORES, pytest.approx(0.4))}


def make_rows(values: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each value, which is every score of it."""
    return [{"id": f"{i:02}", **dict.fromkeys(IMAGE_SCORES, v)} for i, v in enumerate(values)]


def test_models_are_compared_by_image() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.1, 0.9, 40)  # the same images are hard for both
    first, second = make_rows(hard + 0.02 + rng.normal(0, 0.01, 40)), make_rows(hard)
    differences = compare_scores(first, second)
    alone = score_intervals(first)
    for name in IMAGE_SCORES:
        found = differences[name]
        assert found.low > 0
        assert found.mean == pytest.approx(alone[name].mean - score_intervals(second)[name].mean)
        assert found.high - found.low < 0.1 * (alone[name].high - alone[name].low)
    with pytest.raises(AssertionError, match="other images"):
        compare_scores(first, second[1:])


def test_a_table_has_a_row_for_each_image() -> None:
    content = to_csv([("=a", make_rows([0.25, 0.5])), ("b", make_rows([0.75]))]).decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert [row["model"] for row in rows] == ["'=a", "'=a", "b"]  # no formula for a spreadsheet
    assert [float(row["hd95"]) for row in rows] == [0.25, 0.5, 0.75]
    assert list(rows[0]) == ["model", "id", *IMAGE_SCORES]

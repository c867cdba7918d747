"""Scores against an archive's masks at the original size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segan.data.archive.reader import Pair
from segan.errors import RejectedError
from segan.evaluation.score import score_pair, summarise
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
        assert scores == {
            "id": "ISIC_0000000", "accuracy": value, "dice": value, "jaccard": value
        }  # fmt: skip


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
    rows = [
        {"id": "a", "accuracy": 1.0, "dice": 0.5, "jaccard": 0.2},
        {"id": "b", "accuracy": 0.5, "dice": 0.7, "jaccard": 0.6},
    ]
    expected = {"num_images": 2, "accuracy": 0.75, "dice": 0.6, "jaccard": 0.4}
    assert summarise(rows) == pytest.approx(expected)

"""Comparison with the challenge's own scorer on the real validation masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segan.evaluation.metrics import SCORE_NAMES, confusion, threshold_jaccard
from segan.inference.masks import mask_name

pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword")  # the scorer's own
TRUTH = "ISIC-2017_Validation_Part1_GroundTruth"


@pytest.fixture(scope="module")
def scorer() -> Any:
    return pytest.importorskip(
        "isic_challenge_scoring", reason="the challenge's scorer is not installed"
    )


def perturb(truth: np.ndarray, index: int) -> np.ndarray:
    """A prediction with one of six kinds of errors, by index."""
    rng = np.random.default_rng(index)
    if index % 6 == 0:
        return np.roll(truth, (rng.integers(-30, 30), rng.integers(-30, 30)), (0, 1))
    if index % 6 == 1:  # eroded
        inner = truth[2:, 1:-1] & truth[:-2, 1:-1] & truth[1:-1, 2:] & truth[1:-1, :-2]
        return np.pad(inner, 1)
    if index % 6 == 2:
        return np.zeros_like(truth)
    if index % 6 == 3:
        return rng.random(truth.shape) < 0.5
    return ~truth if index % 6 == 4 else truth


def save(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=1)


def score_folder(truth: Path, predictions: Path) -> dict[str, np.ndarray]:
    rows = []
    for path in sorted(truth.glob("*.png")):
        name = mask_name(f"{path.stem.removesuffix('_segmentation')}.jpg")
        masks = (np.asarray(Image.open(f)) > 128 for f in (predictions / name, path))
        rows.append(confusion(*masks).scores())
    return {name: np.array([row[name] for row in rows]) for name in SCORE_NAMES}


def test_real_masks(isic2017: Path, tmp_path: Path, scorer: Any) -> None:
    files = sorted((isic2017 / TRUTH).glob("*.png"))
    assert len(files) == 150
    for index, file in enumerate(files):
        save(perturb(np.asarray(Image.open(file)) > 128, index), tmp_path / file.name)
    found = score_folder(isic2017 / TRUTH, tmp_path)
    assert (found["jaccard"] == 1).sum() == 25, "one in six is unchanged"
    assert (found["jaccard"] == 0).sum() >= 50, "one in six is empty and one inverted"

    expected = scorer.SegmentationScore.from_dir(isic2017 / TRUTH, tmp_path).macro_average
    for name in SCORE_NAMES:
        assert found[name].mean() == pytest.approx(expected[name], abs=1e-9), name
    pairs = scorer.load_image.iter_image_pairs(isic2017 / TRUTH, tmp_path)
    for i, pair in enumerate(pairs):
        one = scorer.SegmentationScore([pair]).macro_average
        for name in SCORE_NAMES:
            assert found[name][i] == pytest.approx(one[name], abs=1e-9), (name, pair.image_id)


def test_empty_masks(tmp_path: Path, scorer: Any) -> None:
    nothing, something = np.zeros((4, 5), bool), np.eye(4, 5, dtype=bool)
    cases = [(nothing, nothing), (nothing, something), (something, nothing)]
    for folder in ("truth", "predictions"):
        (tmp_path / folder).mkdir()
    for i, (truth, prediction) in enumerate(cases):
        save(truth, tmp_path / "truth" / mask_name(f"ISIC_{i:07d}"))
        save(prediction, tmp_path / "predictions" / mask_name(f"ISIC_{i:07d}"))
    found = score_folder(tmp_path / "truth", tmp_path / "predictions")
    assert found["jaccard"].tolist() == [1.0, 0.0, 0.0]
    expected = scorer.SegmentationScore.from_dir(tmp_path / "truth", tmp_path / "predictions")
    for name in SCORE_NAMES:
        assert found[name].mean() == pytest.approx(expected.macro_average[name], abs=1e-9), name


def test_scores_of_an_image_are_the_scorers(scorer: Any, isic2017: Path) -> None:
    """Per image, on real masks and their perturbations, with empty and full ones among them."""
    import pandas as pd
    from isic_challenge_scoring import metrics

    truths = [
        np.asarray(Image.open(f)) > 128 for f in sorted((isic2017 / TRUTH).glob("*.png"))[:24]
    ]
    truths += [np.zeros_like(truths[0]), np.ones_like(truths[0])]
    for index, truth in enumerate(truths):
        predicted = perturb(truth, index)
        counts = confusion(predicted, truth)
        names = ("true_positive", "true_negative", "false_positive", "false_negative")
        matrix = pd.Series(
            {
                n: int(getattr(counts, k))
                for n, k in zip(("TP", "TN", "FP", "FN"), names, strict=True)
            }
        )
        jaccard = counts.scores()["jaccard"]
        assert float(counts.sensitivity()) == metrics.binary_sensitivity(matrix)
        assert float(counts.specificity()) == metrics.binary_specificity(matrix)
        assert float(threshold_jaccard(jaccard)) == metrics.binary_threshold_jaccard(matrix)

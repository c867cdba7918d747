"""Scores of several classes by hand: of each, their means, intervals and differences."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segan.data.archive.label_classes import LabelClasses
from segan.data.archive.pairs import Archive, Pair
from segan.data.records.format import Samples
from segan.errors import UsageError
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.result import evaluate_members
from segan.evaluation.score import (
    CLASS_SCORES,
    check_classes,
    class_intervals,
    compare_scores,
    score_intervals,
    score_pair,
    summarise,
    to_csv,
)
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint, CheckpointInfo
from segan.utils.labels import MEAN
from tests.inference.models import small_config, untrained_predictor

LABELS = ("a", "b")


def make_row(sample_id: str, **pixels: tuple[int, int, int, int]) -> dict[str, Any]:
    """A row of ScoreTask with these counts of true and false positives and negatives."""
    zeros = dict.fromkeys((*CLASS_SCORES, "thresholded_jaccard"), 0.0)
    classes = {name: {**zeros, "hd95": 2.0, "pixels": [*counts]} for name, counts in pixels.items()}
    return {"id": sample_id, "classes": classes}


# Of a: 6 of 10 pixels are found, with 2 others: 6/12. Of b: 1/4.
ROWS = [
    make_row("1", a=(6, 2, 2, 10), b=(0, 1, 0, 19)),
    make_row("2", a=(0, 0, 2, 18), b=(1, 1, 1, 17)),
]


def test_the_scores_of_a_class_are_those_of_all_pixels() -> None:
    found = summarise(ROWS)
    assert found["num_images"] == 2
    assert found["classes"]["a"]["jaccard"] == pytest.approx(6 / 12)
    assert found["classes"]["a"]["dice"] == pytest.approx(12 / 18)
    assert found["classes"]["a"]["sensitivity"] == pytest.approx(6 / 10)
    assert found["classes"]["a"]["specificity"] == pytest.approx(28 / 30)
    assert found["classes"]["b"]["jaccard"] == pytest.approx(1 / 4)
    assert found["jaccard"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found["hd95"] == 2


def test_intervals_are_over_images() -> None:
    found = class_intervals(ROWS)
    assert list(found) == [MEAN, "a", "b"]
    assert list(found["a"]) == list(CLASS_SCORES)
    # The images alone score 6/10 and 0, so the interval ends there.
    assert found["a"]["jaccard"].mean == pytest.approx(6 / 12)
    assert (found["a"]["jaccard"].low, found["a"]["jaccard"].high) == pytest.approx((0, 0.6))
    assert found["a"]["hd95"].low == found["a"]["hd95"].high == 2
    assert score_intervals(ROWS) == found[MEAN]


def test_differences_are_paired_by_image() -> None:
    same = compare_scores(ROWS, ROWS)
    assert {(one.mean, one.low, one.high) for one in same.values()} == {(0, 0, 0)}
    better = [make_row(row["id"], a=(8, 0, 0, 12), b=(0, 0, 0, 20)) for row in ROWS]
    found = class_intervals(better, ROWS)
    assert found["a"]["jaccard"].mean == pytest.approx(1 - 6 / 12)
    assert found["b"]["jaccard"].mean == pytest.approx(1 - 1 / 4)  # all empty, as both should be
    assert compare_scores(better, ROWS) == found[MEAN]


def test_the_table_has_a_row_for_each_image_and_class() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv([("m", ROWS)]).decode())))
    assert [(row["id"], row["class"]) for row in rows] == [
        ("1", "a"),
        ("1", "b"),
        ("2", "a"),
        ("2", "b"),
    ]
    assert rows[0]["hd95"] == "2.0"


def test_an_archive_may_have_the_classes_in_another_order(tmp_path: Path) -> None:
    predictor = untrained_predictor((0, 1), LABELS)
    pixels = np.random.default_rng(0).integers(0, 256, (77, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    prediction = predictor(Image.fromarray(pixels))
    assert prediction.mask.shape == (2, 77, 130)
    for name, mask in zip(LABELS, prediction.mask, strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{name}.png")
    masks = (f"{tmp_path}/b.png", f"{tmp_path}/a.png")
    pair = Pair("1", "test", f"{tmp_path}/image.png", class_masks=masks)
    row = score_pair(predictor, pair, LabelClasses(("b", "a")))
    assert list(row["classes"]) == ["a", "b"]
    assert {scores["jaccard"] for scores in row["classes"].values()} == {1}
    assert [list(member["classes"]) for member in row["members"]] == [["a", "b"]] * 2
    assert summarise([row])["members"][0]["classes"].keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("labels", "names", "fits"),
    [
        (LABELS, LABELS, True),
        (LABELS, ("b", "a"), True),
        (("lesion",), (), True),
        (("lesion",), ("nevus",), True),
        (LABELS, (), False),
        (LABELS, ("a", "c"), False),
        (("lesion",), LABELS, False),
    ],
)
def test_a_model_scores_the_classes_that_it_has(
    labels: tuple[str, ...], names: tuple[str, ...], fits: bool
) -> None:
    archive = Archive("archive", classes=LabelClasses(names) if names else None)
    predictor = untrained_predictor((0,), labels)
    if fits:
        check_classes(predictor, archive)
        return
    with pytest.raises(UsageError, match=r"^archive: has the masks of .* but untrained segments"):
        check_classes(predictor, archive)


# On the validation frames


def make_checkpoint(folder: Path, name: str, maps: np.ndarray) -> Checkpoint:
    np.save(folder / f"{name}.npy", maps)
    metrics = {"jaccard": 0.5, "threshold": 0.5, "class_thresholds": {"a": 0.5, "b": 0.2}}
    info = CheckpointInfo(
        epochs=1,
        samples=1,
        metrics=metrics,
        class_names=LABELS,
        config=small_config(network={"width": 2, "classes": 2}).model_dump(mode="json"),
    )
    return Checkpoint(f"run/{name}", name, {SEGMENTOR_FILE: {"sha256": name}}, info)


def test_an_evaluation_has_each_class_at_its_own_threshold(tmp_path: Path) -> None:
    # 80 pixels a frame. a is in both images, rows 0 and 1; b in the first alone, row 0.
    mask = np.zeros((2, 2, 8, 10), np.uint8)
    mask[:, 0, :2], mask[0, 1, :1] = 1, 1
    samples = Samples(["i0", "i1"], np.full((2, 8, 10, 3), 200, np.uint8), mask)
    maps = np.full((2, 2, 8, 10), 0.1, np.float32)
    maps[:, 0, :1] = 0.9  # half of a
    maps[:, 1, :1] = 0.3  # all of b, and as much in the image without it
    found = evaluate_members(
        ProbabilityCache(samples, tmp_path),
        "validation",
        [make_checkpoint(tmp_path, name, maps) for name in "mn"],
        (0.5, 0.2),
        LABELS,
    )
    a, b = found.classes
    assert (a.name, a.threshold, a.num_images) == ("a", 0.5, 2)
    assert (b.name, b.threshold, b.num_images) == ("b", 0.2, 1)
    assert a.scores["jaccard"].mean == pytest.approx(1 / 2)
    assert b.scores["jaccard"].mean == pytest.approx(1 / 2)
    assert (b.scores["jaccard"].low, b.scores["jaccard"].high) == (0, 1)
    assert (a.all_pixels_jaccard, b.all_pixels_jaccard) == (0.25, 0.0625)
    assert found.scores["jaccard"].mean == pytest.approx(1 / 2)
    # Per image: a 1/2; b 1 and 0.
    assert [image.jaccard for image in found.images] == pytest.approx([0.75, 0.25])
    assert [one.scores["jaccard"].mean for one in found.members] == pytest.approx([0.5, 0.5])
    assert {(one.gain.low, one.gain.high) for one in found.members} == {(0, 0)}
    assert [image.disagreement for image in found.images] == [0, 0]

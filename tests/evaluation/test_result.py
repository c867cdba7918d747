"""Evaluation of made-up probability maps by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segan.data.records.format import Samples
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.result import compute_disagreement, evaluate_members
from segan.inference.thresholds import THRESHOLDS
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint, CheckpointInfo

HEIGHT, WIDTH = 8, 10  # 80 pixels
LESION = 20  # of them, the first two rows


def make_samples(count: int) -> Samples:
    image = np.full((count, HEIGHT, WIDTH, 3), (200, 160, 140), np.uint8)
    mask = np.zeros((count, 1, HEIGHT, WIDTH), np.uint8)
    mask[:, :, :2] = 1
    return Samples([f"i{number}" for number in range(count)], image, mask)


def make_map(*probabilities: float) -> np.ndarray:
    """A map whose rows have these probabilities; the last one fills the remaining rows."""
    found = np.full((1, HEIGHT, WIDTH), probabilities[-1], np.float32)
    for row, probability in enumerate(probabilities):
        found[0, row] = probability
    return found


def make_checkpoint(folder: Path, name: str, threshold: float, *maps: np.ndarray) -> Checkpoint:
    """A checkpoint whose maps are in the cache."""
    np.save(folder / f"{name}.npy", np.stack(maps))
    metrics = {"jaccard": 0.5, "threshold": threshold}
    info = CheckpointInfo(epochs=1, samples=1, metrics=metrics, config={})
    return Checkpoint(f"run/{name}", name, {SEGMENTOR_FILE: {"sha256": name}}, info)


def test_single_model(tmp_path: Path) -> None:
    # Of 20 lesion pixels the first map finds 10 and nothing else: Jaccard 1/2, Dice 2/3. The
    # second finds all and 10 of skin: 20/30 and 40/50.
    maps = ProbabilityCache(make_samples(2), tmp_path)
    one = make_checkpoint(tmp_path, "one", 0.5, make_map(0.9, 0.2), make_map(0.9, 0.9, 0.6, 0.2))
    found = evaluate_members(maps, "validation", [one], [0.5])
    first, second = found.images
    assert (first.id, second.id) == ("i0", "i1")
    assert (first.jaccard, first.dice) == (pytest.approx(1 / 2), pytest.approx(2 / 3))
    assert (second.jaccard, second.dice) == (pytest.approx(2 / 3), pytest.approx(4 / 5))
    assert (first.accuracy, second.accuracy) == (70 / 80, 70 / 80)
    assert found.scores["jaccard"].mean == pytest.approx(7 / 12)
    assert (found.scores["jaccard"].low, found.scores["jaccard"].high) == (
        pytest.approx(1 / 2),
        pytest.approx(2 / 3),
    )
    curve = dict(zip(THRESHOLDS.round(3).tolist(), found.threshold_curves["jaccard"], strict=True))
    assert curve[0.5] == pytest.approx(7 / 12, abs=1e-6)
    assert curve[0.7] == pytest.approx((1 / 2 + 1) / 2)  # the second is then right
    assert curve[0.1] == pytest.approx(20 / 80)
    assert (first.lesion_fraction, first.touches_border, first.hair_fraction) == (
        pytest.approx(0.25),
        True,
        0,
    )
    assert first.disagreement is None
    assert found.members == ()


def test_calibration_by_hand(tmp_path: Path) -> None:
    # 10 pixels of lesion at 0.95, 10 of lesion and 10 of skin at 0.75, 50 of skin at 0.05: the
    # distances 0.05, 0.25 and 0.05 with the weights 10, 20 and 50.
    maps = ProbabilityCache(make_samples(1), tmp_path)
    one = make_checkpoint(tmp_path, "one", 0.5, make_map(0.95, 0.75, 0.75, 0.05))
    found = evaluate_members(maps, "validation", [one], [0.5]).calibration
    assert found.pixels == (50, 0, 0, 0, 0, 0, 0, 20, 0, 10)
    assert found.lesion_fraction == (0.0, *[None] * 6, 0.5, None, 1.0)
    assert found.probability[0] == pytest.approx(0.05)
    assert found.probability[7] == pytest.approx(0.75)
    assert found.expected_calibration_error == pytest.approx(
        (10 * 0.05 + 20 * 0.25 + 50 * 0.05) / 80
    )


def test_ensemble(tmp_path: Path) -> None:
    # At their own thresholds a has rows 0 and 1, b row 0, c rows 0 to 3: a union of 40 pixels and
    # an intersection of 10, so the disagreement is 3/4. The mean's rows are 0.9, 0.6, 0.3, 0.3.
    maps = ProbabilityCache(make_samples(1), tmp_path)
    members = [
        make_checkpoint(tmp_path, "a", 0.5, make_map(0.9, 0.9, 0.0)),
        make_checkpoint(tmp_path, "b", 0.5, make_map(0.9, 0.0)),
        make_checkpoint(tmp_path, "c", 0.8, make_map(0.9, 0.9, 0.9, 0.9, 0.0)),
    ]
    found = evaluate_members(maps, "validation", members, [0.5])
    assert found.images[0].disagreement == pytest.approx(0.75)
    assert found.scores["jaccard"].mean == 1
    alone = [one.scores["jaccard"].mean for one in found.members]
    assert alone == [1, pytest.approx(0.5), pytest.approx(0.5)]
    assert [one.gain.mean for one in found.members] == [0, pytest.approx(0.5), pytest.approx(0.5)]
    assert [one.threshold for one in found.members] == [0.5, 0.5, 0.8]


def test_disagreement_of_empty_masks(tmp_path: Path) -> None:
    maps = ProbabilityCache(make_samples(1), tmp_path)
    members = [make_checkpoint(tmp_path, name, 0.5, make_map(0.1)) for name in "ab"]
    assert compute_disagreement(maps, members).tolist() == [0]


def test_unknown_angle(tmp_path: Path) -> None:
    grey = make_samples(1)
    grey.image[:] = 0
    one = make_checkpoint(tmp_path, "one", 0.5, make_map(0.9))
    found = evaluate_members(ProbabilityCache(grey, tmp_path), "validation", [one], [0.5])
    assert found.images[0].ita is None

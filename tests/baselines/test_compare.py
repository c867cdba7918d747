"""The intervals and rows of the table, worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baselines.compare import (
    Row,
    ScoredRun,
    differing_conditions,
    make_rows,
    own_keys,
    seed_interval,
)
from segan.evaluation.compare import ModelScores
from segan.runs.checkpoint import Checkpoint, CheckpointInfo
from segan.runs.run import Run


def scored_run(seed: int, jaccard: list[float], **identity: Any) -> ScoredRun:
    scores = ModelScores(0.5, np.array(jaccard), np.ones((2, 1)), np.ones((2, 1)))
    best = Checkpoint("", "", {}, CheckpointInfo(epochs=1, samples=1, metrics={}, config={}))
    values = {"network.width": 8, "training.epochs": 3, "training.seed": seed}
    values |= {key.replace("__", "."): value for key, value in identity.items()}
    epochs = [{"epoch": 1, "jaccard": 0.5}, {"epoch": 2, "jaccard": 0.6}]
    return ScoredRun(Run(f"run{seed}"), values, best, scores, epochs)


def test_the_interval_over_seeds_by_hand() -> None:
    """Differences 0.1, 0.2 and 0.3: mean 0.2, standard error 0.1 / sqrt(3), t of 2 degrees."""
    interval = seed_interval({0: 0.6, 1: 0.8, 2: 0.9}, {2: 0.6, 1: 0.6, 0: 0.5})
    assert interval
    assert interval.mean == pytest.approx(0.2)
    assert interval.high - interval.mean == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)


@pytest.mark.parametrize("other", [{0: 0.5}, {0: 0.5, 2: 0.5}])
def test_without_equal_seeds_there_is_no_interval(other: dict[int, float]) -> None:
    assert seed_interval({0: 0.6, 1: 0.7}, other) is None
    assert seed_interval({0: 0.6}, {0: 0.5}) is None


def test_runs_that_differ_in_their_seed_are_one_row() -> None:
    first, second = scored_run(1, [0.5, 0.7]), scored_run(0, [0.7, 0.9])
    (row,) = make_rows([first, second])
    assert (row.label, [one.seed for one in row.runs]) == ("SegAN, w = 8", [0, 1])
    assert row.per_image_jaccard == pytest.approx([0.6, 0.8])
    assert row.runs[0].mean_change == pytest.approx(0.1)


def test_rows_of_one_network_are_told_apart_by_what_differs() -> None:
    runs = [
        scored_run(0, [0.5, 0.7], loss__critic="none"),
        scored_run(0, [0.5, 0.7], loss__critic="multi_scale", training__epochs=4),
        scored_run(0, [0.5, 0.7], baseline__network="dynunet", baseline__width=18),
    ]
    rows = make_rows(runs)
    assert [row.label for row in rows] == [
        "SegAN, w = 8, loss.critic=none, training.epochs=3",
        "SegAN, w = 8, loss.critic=multi_scale, training.epochs=4",
        "dynunet, width 18",
    ]
    assert differing_conditions(rows) == ["training.epochs differs: 3, 4, 3"]


def test_the_keys_of_s_and_c_do_not_tell_baselines_apart() -> None:
    segan = {"network.width": 8, "loss.critic": "none"}
    assert own_keys(segan) == segan
    assert own_keys({**segan, "baseline.network": "dynunet"}) == {
        "loss.critic": "none",
        "baseline.network": "dynunet",
    }


def test_what_was_not_recorded_is_empty() -> None:
    row = Row("", [scored_run(0, [0.5, 0.7])])
    assert row.median_of("cpu_seconds") == ""
    assert row.median_of("epoch", 10) == "15"

"""Which trials ASHA prunes, against rungs computed by hand."""

import json
from pathlib import Path

import pytest

from ray_jobs.tuning.scheduler import CooperativeASHAScheduler, DecisionPublisher
from segan.runs.run import Run
from segan.runs.trial import Trial


@pytest.fixture
def scheduler() -> CooperativeASHAScheduler:
    """Rungs at epochs 1 and 2; at each, the better half continues."""
    return CooperativeASHAScheduler(
        DecisionPublisher(None), lambda *_: None, max_epochs=4, grace_period=1, reduction_factor=2
    )


def make_trial(folder: Path, *jaccards: float) -> Trial:
    """A trial with these validations."""
    run = folder / f"trial_{len(list(folder.iterdir()))}"
    run.mkdir()
    lines = [{"kind": "epoch", "epoch": n, "jaccard": j} for n, j in enumerate(jaccards, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Trial(run.name, {}, Run(str(run)))


def test_the_better_half_continues(scheduler: CooperativeASHAScheduler, tmp_path: Path) -> None:
    assert scheduler.replay(make_trial(tmp_path, 0.4))  # the first one
    assert not scheduler.replay(make_trial(tmp_path, 0.3))  # below the median of 0.4
    assert scheduler.replay(make_trial(tmp_path, 0.35))  # the median of 0.4 and 0.3


def test_a_trial_is_judged_by_its_best_epoch_so_far(
    scheduler: CooperativeASHAScheduler, tmp_path: Path
) -> None:
    assert scheduler.replay(make_trial(tmp_path, 0.4, 0.6))
    assert not scheduler.replay(make_trial(tmp_path, 0.5, 0.55))  # 0.55 is below 0.6
    assert scheduler.replay(
        make_trial(tmp_path, 0.7, 0.2)
    )  # 0.7 is above the median of 0.6 and 0.55


def test_a_trial_is_not_pruned_at_its_last_epoch(
    scheduler: CooperativeASHAScheduler, tmp_path: Path
) -> None:
    assert scheduler.replay(make_trial(tmp_path, 0.4, 0.6, 0.6, 0.6))
    assert scheduler.replay(make_trial(tmp_path, 0.5, 0.6, 0.1, 0.1))

"""The report of an ablation, by hand and of tiny trainings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segan.config import Config, parse_config
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.records.format import read_manifest
from segan.data.synthetic import generate_archive
from segan.errors import StoppedError
from segan.evaluation.bootstrap import paired_interval
from segan.evaluation.compare import AblationReport, compare_variants, score_maps
from segan.evaluation.metrics import confusion
from segan.inference.predictor import Member
from segan.runs.ablation import prepare_trials
from segan.runs.study import Study
from segan.runs.trial import TrialStatus
from segan.training.launch import train_all_local
from tests.samples import read_samples

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "no-critic": {"loss.critic": "none", "loss.cross_entropy_weight": 1.0},
}


def test_score_maps_by_hand() -> None:
    maps = np.array([[[[0.6, 0.3, 0.1]]], [[[0.1, 0.2, 0.9]]]], np.float32)
    truth = np.array([[[[1, 0, 0]]], [[[0, 1, 1]]]], np.uint8)
    found = score_maps(maps, truth)
    # Jaccard 1 and 1/2 for thresholds from 0.3 to 0.6, 1/2 and 1 from 0.1 to 0.2, less elsewhere.
    assert found.jaccard.mean() == pytest.approx(0.75)
    assert sorted(found.jaccard.tolist()) == [0.5, 1.0]
    np.testing.assert_array_equal(found.perimeter, [[1.0], [1.0]])


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")

    def write(name: str, content: bytes) -> None:
        path = folder / "archive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    generate_archive({"train": 12, "validation": 4}, 0, write, short_side=100)
    out = str(folder / "records")
    ingest(open_archive(str(folder / "archive")), out, IngestOptions((90, 68)), local_executor(1))
    return out


def make_config(records: str, seeds: int = 3) -> Config:
    evaluations = {"padded": {"evaluation.resize_mode": "pad"}}
    return parse_config(
        {
            "data": {"records": records},
            "network": {"width": 1},
            "augment": {"crop": 64},
            "training": {"epochs": 2, "batch_size": 4},
            "cluster": {"threads_per_worker": 1},
            "ablation": {"seeds": seeds, "variants": VARIANTS, "evaluations": evaluations},
        }
    )


@pytest.fixture(scope="module")
def study(records: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study that was stopped in its second trial and resumed."""
    config, study = make_config(records), Study(str(tmp_path_factory.mktemp("study")))
    trials = prepare_trials(config, study, read_manifest(records).fingerprint)
    told: list[str] = []
    with pytest.raises(StoppedError):
        train_all_local(config, trials, lambda name, *_: told.append(name), lambda: len(told) >= 3)
    assert [trial.result().has_ended for trial in trials] == [True, *[False] * 5]
    train_all_local(config, trials, lambda name, *_: told.append(name), lambda: False)
    assert sorted(told) == sorted(
        [trial.name for trial in trials] * 2
    )  # no epoch was trained twice
    return study


@pytest.fixture(scope="module")
def report(study: Study, records: str) -> AblationReport:
    return compare_variants(make_config(records), study)


def mean_jaccards(study: Study, records: str, variant: str) -> np.ndarray:
    """Jaccard per image, mean over seeds, at the checkpoints' own thresholds."""
    frames = read_samples(records, read_manifest(records), "validation")
    rows = []
    for seed in range(3):
        best = study.get_trial(f"{variant}-seed{seed}").run.best_checkpoint()
        assert best is not None
        maps = Member.from_checkpoint(best)(torch.tensor(frames.image)).numpy()
        predicted = maps > np.float32(best.threshold)
        rows.append(confusion(predicted, frames.mask != 0).scores()["jaccard"][:, 0])
    return np.mean(rows, axis=0)


def test_scores_are_of_the_best_checkpoints(
    study: Study, records: str, report: AblationReport
) -> None:
    paper, rival = report.variants
    mine, theirs = (mean_jaccards(study, records, name) for name in VARIANTS)
    assert paper.jaccard.mean == pytest.approx(mine.mean())
    assert rival.jaccard.mean == pytest.approx(theirs.mean())
    assert paper.difference_to_baseline is None
    assert vars(rival.difference_to_baseline) == pytest.approx(vars(paired_interval(theirs, mine)))
    assert (paper.num_runs, paper.num_ended, paper.num_scored, paper.num_failed) == (3, 3, 3, 0)
    assert paper.std_over_seeds == pytest.approx(np.std(paper.jaccard_per_seed, ddof=1))


def test_stability_of_the_trainings(study: Study, report: AblationReport) -> None:
    paper = report.variants[0]
    curves = [
        [line["jaccard"] for line in study.get_trial(f"paper-seed{seed}").epoch_metrics()]
        for seed in range(3)
    ]
    assert paper.final_jaccard == pytest.approx(np.mean([curve[1] for curve in curves]))
    assert paper.mean_epoch_change == pytest.approx(np.mean([abs(a - b) for a, b in curves]))
    assert paper.mean_jaccard_over_epochs == pytest.approx(np.mean(curves))
    assert paper.num_diverged == sum(curve[1] < 0.35 for curve in curves)
    assert [run.trial for run in report.runs][:2] == ["paper-seed0", "paper-seed1"]
    assert report.runs[0].jaccard == curves[0]
    assert len(report.runs[0].critic_loss) == 2


def test_evaluations_use_the_baseline_runs(report: AblationReport) -> None:
    (padded,) = report.evaluations
    assert (padded.variant, padded.num_scored) == ("padded", 3)
    assert padded.jaccard != report.variants[0].jaccard
    assert padded.ensemble_of_three is not None


def test_report_is_stored_and_deterministic(
    study: Study, records: str, report: AblationReport
) -> None:
    kept = json.loads(Path(study.uri, "ablation.json").read_text())
    assert kept == json.loads(json.dumps(dataclasses.asdict(report)))
    assert compare_variants(make_config(records), study) == report


def test_report_of_a_study_without_checkpoints(records: str, tmp_path: Path) -> None:
    config, study = make_config(records), Study(str(tmp_path))
    prepare_trials(config, study, read_manifest(records).fingerprint)
    paper = compare_variants(config, study).variants[0]
    assert (paper.num_scored, paper.num_ended, paper.jaccard, paper.final_jaccard) == (
        0,
        0,
        None,
        None,
    )


def test_nonfinite_trials_count_as_diverged(records: str, tmp_path: Path) -> None:
    config, study = make_config(records), Study(str(tmp_path))
    trials = prepare_trials(config, study, read_manifest(records).fingerprint)
    trials[0].mark_done(TrialStatus.DIVERGED, 1.0, "a loss is not finite")
    paper = compare_variants(config, study).variants[0]
    assert (paper.num_ended, paper.num_diverged) == (1, 1)

"""Listing runs, and downloading and verifying checkpoints."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from infra.local.s3 import S3Server
from segan import storage
from segan.cli.console import stdout_console
from segan.config import Config, load_config
from segan.errors import UsageError
from segan.inference.predictor import Predictor
from segan.runs.ablation import prepare_trials
from segan.runs.checkpoint import SEGMENTOR_FILE, CheckpointInfo
from segan.runs.driver_log import keep_driver_log
from segan.runs.ensemble import Choice, Ensemble, EnsembleMember, write_ensemble
from segan.runs.metrics_file import write_metrics
from segan.runs.run import REPORT_FILES, Run, find_checkpoint
from segan.runs.study import Study
from segan.runs.transfer import download_checkpoint, find_checkpoints
from segan.runs.trial import TrialStatus
from segan.storage import s3
from segan.utils.extras import MODULES
from tests.cli.test_cli import TINY_OVERRIDES, error_message, run_cli
from tests.inference.models import copy_files, read_files
from tests.wheel import ROOT

FILES = {
    SEGMENTOR_FILE: b"weights of S" * 99,
    "critic.safetensors": b"C" * 7,
    "trainer.pt": b"\0\1",
}
OVERRIDES = ["training.epochs=3", "optimizer.learning_rate=0.001"]


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds a run of three real epochs."""
    root = tmp_path_factory.mktemp("trained")
    counts = ["--train", 8, "--validation", 2, "--test", 0, "--short-side", 64]
    records = f"data.records={root}/records"
    for words in (
        ["synth", root / "archive", *counts],
        ["ingest", root / "archive", root / "records", "--width", 72, "--height", 64, "--local"],
        ["train", root / "runs" / "real", records, *TINY_OVERRIDES, "training.epochs=3", "--local"],
    ):
        done = run_cli(*words)
        assert done.exit_code == 0, done.stderr
    return str(root / "runs")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def local_run(tmp_path: Path) -> Run:
    """A run whose second checkpoint is the best and whose third is the latest."""
    return write_run(str(tmp_path / "run"), 0.1, 0.6, 0.3)


def write_run(uri: str, *jaccards: float, config: Config | None = None) -> Run:
    """A run with a checkpoint of each Jaccard, and metrics of the same."""
    run, config = Run(uri), config or load_config(None, OVERRIDES)
    run.create_or_resume(config, "the data")
    lines: list[dict[str, Any]] = []
    for epoch, jaccard in enumerate(jaccards, start=1):
        metrics = {
            "epoch": epoch,
            "samples": 10 * epoch,
            "jaccard": jaccard,
            "accuracy": 0.9,
            "dice": 0.8,
            "threshold": 0.5,
            "jaccard_at_config_threshold": 0.1,
            "jaccard_curve": [jaccard],
            "images_per_second": 20.0 + epoch,
            "seconds": 1.0,
        }
        lines += [
            {"kind": "step", "epoch": epoch, "samples": 10 * epoch, "learning_rate": 1 / epoch}
        ]
        lines += [{"kind": "epoch", **metrics}]
        info = CheckpointInfo(
            epochs=epoch,
            samples=10 * epoch,
            metrics=metrics,
            frame={"width": 90, "height": 68},
            config=config.model_dump(mode="json"),
        )
        files = FILES | {SEGMENTOR_FILE: FILES[SEGMENTOR_FILE] + bytes([epoch])}
        run.save_checkpoint(f"epoch_{epoch:05d}", files, info)
    write_metrics(run.uri, lines)
    return run


def write_study(uri: str) -> None:
    """A study with a finished trial, a pruned one, one without a checkpoint and one not started."""
    config = load_config(None, ["training.epochs=2", "search.trials=4"])
    trials = Study(uri).create_or_resume(config, "the data")
    for trial, jaccards in zip(trials[:3], [(0.2, 0.5), (0.1,), ()], strict=True):
        write_run(trial.run.uri, *jaccards, config=trial.build_config(config))
    trials[0].mark_done(TrialStatus.FINISHED, 2.0)
    trials[1].mark_done(TrialStatus.PRUNED, 1.0, "after epoch 1")


def write_test_ensemble(uri: str, run: Run) -> list[str]:
    """An ensemble of a run's checkpoints; returns their URIs."""
    found = run.checkpoints()
    members = tuple(
        EnsembleMember(
            uri=c.uri,
            k=1.0,
            files={SEGMENTOR_FILE: dict(c.files[SEGMENTOR_FILE])},
            info=c.info,
        )
        for c in found
    )
    names = tuple(c.uri for c in found)
    ensemble = Ensemble(
        members=members,
        threshold=0.5,
        scores={"accuracy": 0.9, "dice": 0.8, "jaccard": 0.7},
        jaccard_curve=(0.7,),
        rule="best",
        choices={"best": Choice(members=names, threshold=0.5, jaccard=0.7)},
        candidates={},
        records="none",
        fingerprint="the data",
        splits={},
        train_split="train",
        validation_split="validation",
        frame={"width": 90, "height": 68},
        classes=1,
    )
    write_ensemble(uri, ensemble, found, "a card")
    return [*names]


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def corrupt(uri: str, corruption: Callable[[bytes], bytes] = flip_last_bit) -> None:
    storage.write_bytes(uri, corruption(storage.read_bytes(uri)))


# Runs


def test_runs_are_listed_by_name_with_their_state(root: str) -> None:
    write_run(f"{root}/runs/b", 0.1, 0.6, 0.3)
    write_run(f"{root}/runs/a", 0.4)
    write_study(f"{root}/studies/k")
    found = run_cli("runs", "ls", root, "--json").json
    keys = ("name", "epochs", "total_epochs", "jaccard", "best_epoch", "state")
    keys += ("images_per_second",)
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("runs/a", 1, 3, 0.4, 1, "unfinished", 21),
        ("runs/b", 3, 3, 0.6, 2, "finished", 23),
        ("studies/k/trials/trial_000", 2, 2, 0.5, 2, "finished", 22),
        ("studies/k/trials/trial_001", 1, 2, 0.1, 1, "pruned", 21),
        ("studies/k/trials/trial_002", 0, 2, None, None, "unfinished", None),
    ]
    assert [row["uri"] for row in found[:2]] == [f"{root}/runs/a", f"{root}/runs/b"]
    assert all(row["started_at"][:13] <= row["last_modified"] for row in found)
    assert run_cli("runs", "ls", f"{root}/runs/b/", "--json").json == [found[1] | {"name": "b"}]


def test_runs_are_shown_in_a_table(local_run: Run) -> None:
    write_run(f"{local_run.uri}/../other", 0.25)
    done = run_cli("runs", "ls", str(Path(local_run.uri).parent))
    assert done.exit_code == 0
    assert "0.6000 at 2" in done.stdout
    assert "1/3" in done.stdout
    assert "unfinished, " in done.stdout
    assert done.stderr.startswith("unfinished: with the time since the last write")


def test_a_run_that_cannot_be_read_leaves_the_others_in_the_list(
    local_run: Run, tmp_path: Path
) -> None:
    storage.write_bytes(f"{tmp_path}/broken/run.json", b"{half")
    storage.write_bytes(f"{tmp_path}/other/run.json", b"[]")
    found = run_cli("runs", "ls", tmp_path, "--json").json
    assert [(row["name"], row["state"]) for row in found] == [
        ("broken", "invalid"),
        ("other", "invalid"),
        ("run", "finished"),
    ]


def test_neighbours_whose_names_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    for name, jaccard in (("a", 0.1), ("a-b", 0.2), ("a.b", 0.3), ("a/b", 0.4), ("ab", 0.5)):
        write_run(f"{tmp_path}/{name}", jaccard)
    found = run_cli("runs", "ls", tmp_path, "--json").json
    assert {row["name"]: row["jaccard"] for row in found} == {
        "a": 0.1,
        "a-b": 0.2,
        "a.b": 0.3,
        "a/b": 0.4,
        "ab": 0.5,
    }


def test_a_folder_without_runs_is_reported(root: str) -> None:
    said = error_message(1, "runs", "ls", root)
    assert said == f"{root}: no run here or below (no run.json)"


def test_a_real_run_is_shown(trained_runs: str, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdout_console, "_width", 200)
    copy_files(trained_runs, root)
    found = run_cli("runs", "show", f"{root}/real", "--json").json
    changed = {key: (v["value"], v["default"]) for key, v in found["non_default"].items()}
    assert changed["network.width"] == (2, 64)
    assert changed["training.epochs"] == (3, 300)
    resolved = {"data.records", "performance.precision"}  # by the world and by the device
    assert set(changed) == {word.split("=")[0] for word in TINY_OVERRIDES} | resolved
    assert found["config"]["network"]["classes"] == 1
    assert found["fingerprint"]
    assert {"torch", "numpy"} <= set(found["packages"])
    assert [line["epoch"] for line in found["epochs"]] == [1, 2, 3]
    for line in found["epochs"]:
        assert {"critic_loss", "segmentor_loss", "jaccard", "k", "data_wait_fraction"} <= set(line)
    best = max(found["epochs"], key=lambda line: line["jaccard"])
    summary = found["summary"]
    assert (summary["epochs"], summary["state"]) == (3, "finished")
    assert (summary["jaccard"], summary["best_epoch"]) == (best["jaccard"], best["epoch"])
    epochs = {alias: row["epoch"] for row in found["checkpoints"] for alias in row["aliases"]}
    assert epochs == {"best": best["epoch"], "latest": 3}
    table = run_cli("runs", "show", f"{root}/real").stdout
    for word in ("network.width", "default values", "C loss", "wait", "epoch_00003", "latest"):
        assert word in table


def test_an_epochs_learning_rate_is_that_of_its_last_logged_step(local_run: Run) -> None:
    found = run_cli("runs", "show", local_run, "--json").json["epochs"]
    assert [line["learning_rate"] for line in found] == [1, 1 / 2, 1 / 3]


def test_non_default_values_come_first(local_run: Run) -> None:
    shown = run_cli("runs", "show", local_run).stdout
    assert shown.index("optimizer.learning_rate") < shown.index("default values")
    assert shown.index("default values") < shown.index("betas")


def test_a_study_is_shown_as_its_leaderboard_and_nothing_is_written(root: str) -> None:
    write_study(f"{root}/k")
    before = storage.list_files(root)
    found = run_cli("runs", "show", f"{root}/k", "--json").json
    assert [row["trial"] for row in found["trials"][:2]] == ["trial_000", "trial_001"]
    done = run_cli("runs", "show", f"{root}/k")
    assert "best Jaccard 0.5000" in done.stdout
    assert f"segan runs show {root}/k/trials/trial_000" in done.stderr
    assert storage.list_files(root) == before


def test_an_ablation_is_shown_as_its_leaderboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trials set different keys, and values that are not numbers."""
    monkeypatch.setattr(stdout_console, "_width", 200)
    variants = {"paper": {}, "per-level": {"loss.reduction": "per_level"}}
    ablation = f"ablation.variants={json.dumps(variants)}"
    config = load_config(None, ["training.epochs=2", "ablation.seeds=1", ablation])
    uri = str(tmp_path / "study")
    paper, per_level = prepare_trials(config, Study(uri), "the data")
    write_run(paper.run.uri, 0.2, 0.5, config=paper.build_config(config))
    paper.mark_done(TrialStatus.FINISHED, 1.0)
    per_level.mark_done(TrialStatus.FAILED, 1.0, "the bucket is gone")
    done = run_cli("runs", "show", uri)
    assert done.exit_code == 0, done.stderr
    assert "│ training.seed=0 " in done.stdout
    assert "│ loss.reduction=per_level training.seed=0 " in done.stdout
    assert "failed: the bucket is gone" in done.stdout
    rows = run_cli("runs", "show", uri, "--json").json["trials"]
    assert [(row["status"], row["reason"]) for row in rows] == [
        ("finished", ""),
        ("failed", "the bucket is gone"),
    ]


def test_what_is_there_instead_of_a_run_is_named(local_run: Run, tmp_path: Path) -> None:
    write_test_ensemble(f"{tmp_path}/three", local_run)
    inside = f"{local_run}/checkpoints/epoch_00001"
    assert error_message(2, "runs", "show", inside) == (
        f"{inside}: inside a run; expected the run's own URI, {local_run}"
    )
    assert "an ensemble, not a run" in error_message(2, "runs", "show", tmp_path / "three")
    assert "no run here (no run.json)" in error_message(1, "runs", "show", tmp_path / "none")
    write_study(f"{tmp_path}/k")
    assert "a study, not a run" in error_message(2, "checkpoints", "ls", tmp_path / "k")


# Checkpoints


def test_checkpoints_within_epochs_and_torn_manifests_are_listed(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6)
    first = run.get_checkpoint("epoch_00001")
    info = replace(first.info, samples=25, epochs=2, metrics={"epoch": 3, "step": 5})
    run.save_checkpoint("step_0000005", FILES, info)
    corrupt(f"{run}/checkpoints/epoch_00001/manifest.json", truncate)
    rows = {row["name"]: row for row in run_cli("checkpoints", "ls", run, "--json").json}
    assert {name: (row["epoch"], row["jaccard"], row["aliases"]) for name, row in rows.items()} == {
        "epoch_00001": (None, None, []),
        "epoch_00002": (2, 0.6, ["best"]),
        "step_0000005": (2, None, ["latest"]),
    }
    assert [row["complete"] for row in rows.values()] == [False, True, True]
    assert "not the manifest of a checkpoint" in rows["epoch_00001"]["error"]
    assert "step_0000005" in run_cli("checkpoints", "ls", run).stdout
    (summary,) = run_cli("runs", "ls", run, "--json").json
    assert (summary["epochs"], summary["jaccard"], summary["best_epoch"]) == (2, 0.6, 2)
    assert "never used: epoch_00001: " in run_cli("checkpoints", "verify", run).stderr


def test_a_checkpoint_between_validations_is_no_model_for_use(local_run: Run) -> None:
    """It has no threshold."""
    best = local_run.get_checkpoint("best").info
    within = replace(best, samples=35, metrics={"epoch": 4, "step": 7})
    local_run.save_checkpoint("step_0000007", FILES, within)
    with pytest.raises(UsageError, match="step_0000007: saved between two validations, so it has"):
        Predictor.load(f"{local_run}/checkpoints/latest")


def test_incomplete_checkpoints_are_listed_as_such(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3, 0.9)
    corrupt(f"{run}/checkpoints/epoch_00004/trainer.pt", truncate)
    storage.delete_file(f"{run}/checkpoints/epoch_00001/critic.safetensors")
    storage.write_bytes(f"{run}/checkpoints/epoch_00005/{SEGMENTOR_FILE}", b"half")
    found = run_cli("checkpoints", "ls", run, "--json").json
    assert [(row["name"], row["complete"], row["aliases"]) for row in found] == [
        ("epoch_00001", False, []),
        ("epoch_00002", True, []),
        ("epoch_00003", True, []),
        ("epoch_00004", False, ["best", "latest"]),  # as for every command that takes one
        ("epoch_00005", False, []),
    ]
    assert [row["error"] for row in found] == [
        "critic.safetensors: expected 7 bytes, found no such file",
        "",
        "",
        "trainer.pt: expected 2 bytes, found 1",
        "no manifest.json",
    ]
    names = read_files(f"{run}/checkpoints/epoch_00002")
    assert found[1]["size"] == sum(map(len, names.values()))
    assert (found[1]["epoch"], found[1]["jaccard"]) == (2, 0.6)


def test_a_run_without_checkpoints_is_reported(tmp_path: Path) -> None:
    run = write_run(f"{tmp_path}/run")
    assert run_cli("checkpoints", "ls", run, "--json").json == []
    assert run_cli("checkpoints", "ls", run).stderr == f"{run}: no checkpoint yet\n"


@pytest.mark.parametrize(
    ("source", "words", "epoch"),
    [
        ("", [], 2),
        ("", ["--name", "best"], 2),
        ("", ["--name", "latest"], 3),
        ("", ["--name", "epoch_00001"], 1),
        ("/checkpoints/epoch_00001", [], 1),
        ("/checkpoints/latest", [], 3),
        ("/checkpoints/best/", ["--name", "epoch_00002"], 2),
    ],
)
def test_a_checkpoint_is_downloaded_by_any_of_its_names(
    local_run: Run, tmp_path: Path, source: str, words: list[str], epoch: int
) -> None:
    assert (
        run_cli(
            "checkpoints", "download", f"{local_run}{source}", tmp_path / "out", *words
        ).exit_code
        == 0
    )
    assert read_files(f"{tmp_path}/out") == read_files(f"{local_run}/checkpoints/epoch_0000{epoch}")


def test_a_downloaded_checkpoint_is_a_model(trained_runs: str, root: str, tmp_path: Path) -> None:
    copy_files(trained_runs, root)
    out = tmp_path / "out"
    done = run_cli("checkpoints", "download", f"{root}/real", out, "--file", "segmentor", "--json")
    assert done.json["files"] == done.json["downloaded"] == [SEGMENTOR_FILE]
    assert {path.name for path in out.iterdir()} == {SEGMENTOR_FILE, "manifest.json"}
    best = find_checkpoint(f"{root}/real")
    assert find_checkpoint(str(out)).info == best.info
    assert Predictor.load(str(out)).threshold == best.threshold
    assert run_cli("checkpoints", "verify", out).exit_code == 0
    rest = run_cli("checkpoints", "download", f"{root}/real", out, "--json").json
    assert set(rest["downloaded"]) == set(best.files) - {SEGMENTOR_FILE}
    assert read_files(str(out)) == read_files(best.uri)


def test_intact_files_are_not_downloaded_again(local_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["checkpoints", "download", local_run, out]
    assert run_cli(*words).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run_cli(*words, "--json").json["downloaded"] == []
    assert run_cli(*words, "--file", "segmentor", "--json").json["downloaded"] == []
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "trainer.pt").unlink()  # as after a pull that was interrupted
    (out / "manifest.json").unlink()
    assert run_cli(*words, "--json").json["downloaded"] == ["trainer.pt"]
    assert read_files(str(out)) == read_files(find_checkpoint(local_run.uri).uri)


@pytest.mark.parametrize("name", [SEGMENTOR_FILE, "trainer.pt", "manifest.json"])
def test_other_files_are_not_overwritten(local_run: Run, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    storage.write_bytes(f"{out}/{name}", b'{"mine": 1}')
    said = error_message(2, "checkpoints", "download", local_run, out).splitlines()[-1]
    assert said.startswith(f"{out}/{name}: ")
    assert read_files(str(out)) == {name: b'{"mine": 1}'}


def test_a_checkpoint_is_not_downloaded_over_another(local_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_cli("checkpoints", "download", local_run, out)
    before = read_files(str(out))
    assert "use an empty folder" in error_message(
        2, "checkpoints", "download", local_run, out, "--name", "latest"
    )
    assert read_files(str(out)) == before


@pytest.mark.parametrize(
    "change", [{"files": None}, {"files": []}, {"files": "all"}, {"info": None}], ids=str
)
def test_a_manifest_of_a_download_that_is_none_is_refused(
    local_run: Run, tmp_path: Path, change: dict[str, Any]
) -> None:
    (checkpoint, *_), _ = find_checkpoints(local_run.uri)
    target = f"{tmp_path}/pulled"
    arguments = (checkpoint, target, [*checkpoint.files], lambda _: None)
    download_checkpoint(*arguments)
    uri = f"{target}/manifest.json"
    storage.write_json(uri, storage.read_json(uri) | change)
    with pytest.raises(UsageError, match=r"manifest\.json: of another checkpoint than"):
        download_checkpoint(*arguments)


@pytest.mark.parametrize("how", [flip_last_bit, truncate, lambda c: c + b"\0", lambda _: b""])
def test_a_corrupted_file_is_not_kept(
    root: str, tmp_path: Path, how: Callable[[bytes], bytes]
) -> None:
    run, out = write_run(f"{root}/run", 0.5), tmp_path / "out"
    (checkpoint,) = run.checkpoints()
    name = "trainer.pt"
    corrupt(f"{checkpoint.uri}/{name}", how)
    found = storage.sha256(storage.read_bytes(f"{checkpoint.uri}/{name}"))
    done = run_cli("checkpoints", "download", run, out)
    assert done.exit_code == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"segan: {checkpoint.uri}/{name}: expected sha256 ")
    assert storage.sha256(FILES[name]) in said
    assert found in said
    assert {path.name for path in out.iterdir()} == {SEGMENTOR_FILE, "critic.safetensors"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_no_name_leaves_its_folder(local_run: Run, tmp_path: Path, name: str) -> None:
    (checkpoint, *_) = local_run.checkpoints()
    files = {name: {"sha256": storage.sha256(b""), "size": 0}}
    storage.write_json(
        f"{checkpoint.uri}/manifest.json", {"files": files, "info": vars(checkpoint.info)}
    )
    before = read_files(str(tmp_path))
    done = run_cli("checkpoints", "download", checkpoint.uri, tmp_path / "out")
    assert done.exit_code == 2
    assert f"{name!r}: expected a name inside" in done.stderr
    assert read_files(str(tmp_path)) == before
    said = error_message(1, "checkpoints", "download", local_run, tmp_path / "out", "--name", name)
    assert f"no complete checkpoint {name!r}; expected one of epoch_00001, " in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["RUN", "s3://bucket/x"], 2, "expected a local folder"),
        (["RUN", "OUT", "--file", "weights"], 2, "no file 'weights'; expected one of critic"),
        (["RUN/checkpoints/epoch_00001", "OUT", "--name", "best"], 2, "give the run's URI"),
        (["RUN", "OUT", "--name", "epoch_00009"], 1, "expected one of epoch_00001, epoch_00002"),
        (["OUT", "OUT"], 1, "neither a checkpoint nor a run with a complete one"),
        (["RUN", "RUN/run.json"], 1, "run.json"),
    ],
)
def test_an_impossible_download_is_refused(
    local_run: Run, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    places = [w.replace("RUN", local_run.uri).replace("OUT", f"{tmp_path}/out") for w in words]
    assert said in error_message(code, "checkpoints", "download", *places)
    assert not (tmp_path / "out").exists()


# Verifying


def test_intact_checkpoints_pass_verification(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3)
    found = run_cli("checkpoints", "verify", run, "--json")
    assert found.exit_code == 0
    assert [check["error"] for check in found.json] == [""] * 9
    one = run_cli("checkpoints", "verify", f"{run}/checkpoints/latest", "--json").json
    assert [v["uri"] for v in one] == [
        f"{run}/checkpoints/epoch_00003/{name}" for name in sorted(FILES)
    ]


def test_every_corrupted_file_is_named(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3)
    folder = f"{run}/checkpoints"
    corrupt(f"{folder}/epoch_00001/{SEGMENTOR_FILE}", flip_last_bit)
    corrupt(f"{folder}/epoch_00002/{SEGMENTOR_FILE}", truncate)
    storage.delete_file(f"{folder}/epoch_00003/trainer.pt")
    done = run_cli("checkpoints", "verify", run)
    assert done.exit_code == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("segan: 3 of 9 files are corrupted or missing: ")
    assert f"{folder}/epoch_00001/{SEGMENTOR_FILE}: expected sha256 " in said
    assert f"{folder}/epoch_00002/{SEGMENTOR_FILE}: expected 1189 bytes, found 594" in said
    assert f"{folder}/epoch_00003/trainer.pt: expected 2 bytes, found no such file" in said
    assert run_cli("checkpoints", "verify", f"{folder}/epoch_00001").exit_code == 1
    assert sum(bool(v["error"]) for v in run_cli("checkpoints", "verify", run, "--json").json) == 3


def test_an_incomplete_checkpoint_is_skipped_with_a_message(local_run: Run, tmp_path: Path) -> None:
    storage.write_bytes(f"{local_run}/checkpoints/epoch_00004/{SEGMENTOR_FILE}", b"half")
    done = run_cli("checkpoints", "verify", local_run)
    assert done.exit_code == 0
    assert "never used: epoch_00004: no manifest.json" in done.stderr
    assert "no run here" in error_message(1, "checkpoints", "verify", tmp_path / "none")
    empty = write_run(f"{tmp_path}/empty")
    assert "without a complete checkpoint" in error_message(1, "checkpoints", "verify", empty)


def test_an_ensemble_is_verified_by_its_members(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3)
    write_test_ensemble(f"{root}/three", run)
    words = ["checkpoints", "verify", f"{root}/three"]
    assert len(run_cli(*words, "--json").json) == 3
    corrupt(f"{root}/three/2/{SEGMENTOR_FILE}")
    done = run_cli(*words)
    assert done.exit_code == 1
    assert (
        f"1 of 3 files are corrupted or missing: {root}/three/2/{SEGMENTOR_FILE}: " in done.stderr
    )


# Links


def http_get(link: str) -> bytes:
    with urllib.request.urlopen(link, timeout=10) as answer:  # no credentials are sent
        return answer.read()


@pytest.mark.integration
@pytest.mark.parametrize(("which", "epoch"), [("best", 2), ("latest", 3), ("epoch_00001", 1)])
def test_a_link_needs_no_keys(bucket: str, which: str, epoch: int) -> None:
    run = write_run(f"{bucket}/a run", 0.1, 0.6, 0.3)
    done = run_cli("checkpoints", "url", run, "--name", which)
    assert done.exit_code == 0
    body = http_get(done.stdout.strip())
    assert body == FILES[SEGMENTOR_FILE] + bytes([epoch])
    assert storage.sha256(body) in done.stderr
    manifest = ["--file", "manifest.json", "--json"]
    link = run_cli("checkpoints", "url", f"{run}/checkpoints/{which}", *manifest).json["url"]
    assert json.loads(http_get(link))["info"]["epochs"] == epoch


@pytest.mark.integration
def test_a_link_expires_and_cannot_be_bent(bucket: str) -> None:
    run = write_run(f"{bucket}/run", 0.1, 0.6)
    link = run_cli("checkpoints", "url", run, "--expires-in", 1).stdout.strip()
    other = run_cli("checkpoints", "url", run).stdout.strip().replace("epoch_00002", "epoch_00001")
    time.sleep(2.5)
    for refused in (link, other):
        with pytest.raises(urllib.error.HTTPError) as caught:
            http_get(refused)
        assert caught.value.code == 403


@pytest.mark.integration
def test_a_link_is_signed_with_the_keys_of_the_moment(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.presign(f"{bucket}/file", 60)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ANOTHERKEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    link = s3.presign(f"{bucket}/file", 60)
    assert link.startswith("http://127.0.0.1:9/")
    assert "ANOTHERKEY" in link
    done = run_cli("runs", "ls", bucket)
    assert (done.exit_code, done.stdout) == (1, "")
    # A warning can stand before it, that the command retries.
    assert "no valid response from http://127.0.0.1:9" in done.stderr.splitlines()[-1]


@pytest.mark.integration
@pytest.mark.parametrize("seconds", [0, -1, 7 * 24 * 3600 + 1])
def test_the_expiry_of_a_url_is_bounded(bucket: str, seconds: int) -> None:
    run = write_run(f"{bucket}/run", 0.1)
    said = error_message(2, "checkpoints", "url", run, "--expires-in", seconds)
    assert said == f"{seconds} s: expected 1 to 604800 s (7 days)"


def test_only_a_bucket_has_links(local_run: Run) -> None:
    assert "expected an s3:// URI" in error_message(2, "checkpoints", "url", local_run)
    said = error_message(2, "checkpoints", "url", local_run, "--file", "../../run.json")
    assert "no file '../../run.json'; expected one of " in said


# With the base installation

BASE_PROGRAM = """
import contextlib, io, json, sys

from segan.utils.extras import MODULES

for names in MODULES.values():
    for name in names:
        sys.modules[name] = None  # as if it were not installed
from segan.cli.main import main

done = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    done.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


def run_with_base(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command, in a process without the extras' modules."""
    done = subprocess.run(
        [sys.executable, "-c", BASE_PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return [tuple(one) for one in json.loads(done.stdout)]


def test_the_base_reads_and_downloads(root: str, tmp_path: Path) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3)
    write_study(f"{root}/k")
    write_test_ensemble(f"{root}/three", run)
    write_report_files(run.uri)
    with keep_driver_log(run.uri, "segan train"):
        logging.getLogger("segan").warning("a warning")
    out = f"{tmp_path}/out"
    commands = [
        ["runs", "ls", root],
        ["runs", "show", run.uri],
        ["runs", "show", f"{root}/k"],
        ["runs", "logs", run.uri],
        ["runs", "watch", f"{root}/k", "--once"],
        ["runs", "watch", run.uri, "--once"],
        ["checkpoints", "ls", run.uri],
        ["checkpoints", "download", run.uri, f"{out}/run", "--name", "latest"],
        ["checkpoints", "download", run.uri, f"{out}/run", "--file", "report"],
        ["checkpoints", "download", f"{root}/k", f"{out}/best"],
        ["checkpoints", "download", f"{root}/three", f"{out}/three"],
        ["checkpoints", "verify", run.uri],
        ["checkpoints", "verify", f"{root}/three"],
        ["checkpoints", "verify", f"{out}/run"],
        ["checkpoints", "verify", f"{out}/three"],
        ["config", "network.width=8"],
        ["runs", "show", f"{root}/three"],
        ["checkpoints", "url", run.uri],
    ]
    *done, (shown, _, ensemble), (code, link, said) = run_with_base(*commands)
    assert [code for code, *_ in done] == [0] * 16, done
    assert "a warning" in done[3][1]
    assert (shown, "an ensemble, not a run" in ensemble) == (2, True)
    assert read_files(f"{out}/three") == read_files(f"{root}/three")
    if root.startswith("s3://"):
        assert http_get(link.strip()) == find_checkpoint(run.uri).read(SEGMENTOR_FILE)
    else:
        assert (code, "expected an s3:// URI" in said) == (2, True)


def test_what_needs_an_extra_says_so_in_one_line(tmp_path: Path) -> None:
    run, out = write_run(f"{tmp_path}/run", 0.5).uri, f"{tmp_path}/out"
    commands = [
        ["train", out],
        ["train", out, "--local"],
        ["tune", out],
        ["ablate", out, "--config", "ablation"],
        ["synth", out],
        ["ingest", run, out],
        ["evaluate", run, run, "--local"],
        ["predict", run, run, out],
        ["export", run, out],
        ["ensemble", "build", "--member", run, "--out", out],
        ["report", run, "--out", f"{out}/report.html"],
        ["serve", run, "--local"],
        ["bench", "step"],
        ["runs", "track", run, "--to", "mlflow"],
    ]
    for words, (code, stdout, stderr) in zip(commands, run_with_base(*commands), strict=True):
        extra = words[-1] if words[-1] == "mlflow" else "serve" if words[0] == "serve" else "train"
        assert (code, stdout) == (2, ""), (words, stderr)
        (line,) = stderr.splitlines()
        assert re.search(rf" needs \w+, which is not installed; pip install '.*\[{extra}\]'", line)
        assert ("whl/cpu" in line) == (extra == "train")
    assert not Path(out).exists()


def test_the_modules_of_the_extras_are_those_of_the_package() -> None:
    """A requirement that is added to pyproject.toml must have its module listed."""
    names = {"pillow": "PIL", "mlflow-skinny": "mlflow", "python-multipart": "python_multipart"}
    names["zlib-ng"] = "zlib_ng"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, modules in MODULES.items():
        lines = map(Requirement, project["optional-dependencies"][extra])
        packages = [line.name for line in lines if line.name != "segan"]
        assert {names.get(package, package) for package in packages} - {"ray"} <= {*modules}


# Ensembles, studies and reports


def write_report_files(uri: str) -> None:
    for name in REPORT_FILES:
        storage.write_bytes(f"{uri}/{name}", f"{name} of {uri}".encode())


def test_an_ensemble_is_downloaded_whole_and_resumed(root: str, tmp_path: Path) -> None:
    source, out = f"{root}/three", tmp_path / "out"
    write_test_ensemble(source, write_run(f"{root}/run", 0.1, 0.6, 0.3))
    words = ["checkpoints", "download", source, out, "--json"]
    result = run_cli(*words).json
    assert result["ensemble"] == source
    assert result["downloaded"] == result["files"]
    assert read_files(str(out)) == read_files(source)
    (out / "ensemble.json").unlink()  # as after a download that was interrupted
    (out / "2" / SEGMENTOR_FILE).unlink()
    assert run_cli(*words).json["downloaded"] == [f"2/{SEGMENTOR_FILE}", "ensemble.json"]
    assert read_files(str(out)) == read_files(source)
    assert "downloaded as a whole" in error_message(2, *words[:-1], "--name", "best")
    write_test_ensemble(f"{root}/two", write_run(f"{root}/other", 0.1, 0.6))
    said = error_message(2, "checkpoints", "download", f"{root}/two", out)
    assert said.endswith("delete it, or use another folder")


def test_a_corrupted_member_is_not_kept(root: str, tmp_path: Path) -> None:
    source, out = f"{root}/three", tmp_path / "out"
    write_test_ensemble(source, write_run(f"{root}/run", 0.1, 0.6, 0.3))
    corrupt(f"{source}/2/{SEGMENTOR_FILE}")
    done = run_cli("checkpoints", "download", source, out)
    assert (done.exit_code, "expected sha256" in done.stderr) == (1, True)
    assert {*read_files(str(out))} == {f"1/{SEGMENTOR_FILE}"}


def test_the_best_checkpoint_of_a_study_is_downloaded(root: str, tmp_path: Path) -> None:
    write_study(f"{root}/k")
    words = ["checkpoints", "download", f"{root}/k", tmp_path / "out"]
    best = f"{root}/k/trials/trial_000/checkpoints/epoch_00002"
    assert run_cli(*words, "--json").json["checkpoint"] == best
    assert read_files(f"{tmp_path}/out") == read_files(best)
    assert "name a trial instead" in error_message(2, *words, "--name", "latest")


def test_a_report_is_downloaded_with_or_without_weights(root: str, tmp_path: Path) -> None:
    run = write_run(f"{root}/run", 0.5)
    words = ["checkpoints", "download", run, tmp_path / "out", "--file", "report"]
    assert f"{run}: no report here" in error_message(1, *words)
    write_report_files(run.uri)
    assert run_cli(*words, "--json").json["downloaded"] == [*REPORT_FILES]
    assert {*read_files(f"{tmp_path}/out")} == {*REPORT_FILES}
    both = run_cli(*words, "--file", "segmentor", "--json").json
    assert both["downloaded"] == [SEGMENTOR_FILE]
    assert both["files"] == [SEGMENTOR_FILE, *REPORT_FILES]
    storage.write_bytes(f"{run}/report.html", b"a newer one")
    assert "report.html: differs from " in error_message(2, *words)


@pytest.mark.integration
def test_wrong_credentials_are_reported(s3: S3Server, bucket: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        for command in (["runs", "ls"], ["runs", "show"], ["checkpoints", "ls"]):
            assert "access denied; check AWS_ACCESS_KEY_ID" in error_message(1, *command, bucket)
        for command in (["verify", bucket], ["url", bucket], ["download", bucket, "out"]):
            assert "access denied" in error_message(1, "checkpoints", *command)

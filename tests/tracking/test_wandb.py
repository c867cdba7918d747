"""Runs in W&B's offline mode, read back from the files that `wandb sync` would upload."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segan import storage
from segan.cli.main import main
from segan.runs.trial import TrialStatus
from tests.stored_runs import FINGERPRINT, store_metrics, store_run, store_study

wandb = pytest.importorskip("wandb", reason="no wandb; install segan[wandb]")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """WANDB_DIR in offline mode."""
    wandb.teardown()  # it reads its variables once
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "offline"))
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name.lower()))
    (tmp_path / "offline").mkdir()
    yield tmp_path / "offline"
    wandb.teardown()


def iter_records(content: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file, which has LevelDB's log format after a header of its own.

    Blocks of 32 KiB hold fragments, each behind a checksum, its length and its type: 1 for a whole
    record, 2, 3 and 4 for the first, middle and last part of one. No fragment crosses a block.
    """
    assert content.startswith(b":W&B")
    block, header, at, record = 32768, 7, 7, b""
    while at + header <= len(content):
        if block - at % block < header:  # padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):
            yield record
            record = b""


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The record of each offline run: its fields, and its history by step."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        found: dict[str, Any] = {"history": {}, "config": {}, "files": []}
        for content in iter_records(file.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("run"):
                run = record.run
                found |= {"name": run.display_name, "id": run.run_id, "project": run.project}
                found |= {"group": run.run_group}
                found["config"] |= {u.key: json.loads(u.value_json) for u in run.config.update}
            elif record.HasField("history"):
                items = record.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                found["history"].setdefault(record.history.step.num, {}).update(row)
            elif record.HasField("artifact"):
                found["files"] += [entry.path for entry in record.artifact.manifest.contents]
            elif record.HasField("exit"):
                found["exit_code"] = record.exit.exit_code
        runs.append(found)
    return runs


def test_a_run_with_parameters_curves_and_files(folder: Path, tmp_path: Path) -> None:
    run = store_run(str(tmp_path / "first"), 0.5, 0.6, epochs=2)
    storage.write_bytes(f"{run.uri}/report.html", b"<!doctype html>")
    assert main(["runs", "track", run.uri, "--to", "wandb"]) == 0
    (found,) = read_runs(folder)
    assert (found["name"], found["project"], found["exit_code"]) == ("first", "segan", 0)
    assert found["config"]["optimizer.learning_rate"] == 0.003
    assert found["config"]["segan.fingerprint"] == FINGERPRINT
    curve = [(step, row["epoch/jaccard"]) for step, row in sorted(found["history"].items())]
    assert curve == [(20, 0.5), (40, 0.6)]
    assert found["history"][40]["step/segmentor_loss"] == 0.25
    assert sorted(found["files"]) == ["metrics.jsonl", "report.html"]


def test_a_second_call_has_the_same_id_and_the_whole_history(folder: Path, tmp_path: Path) -> None:
    run = store_run(str(tmp_path / "first"), 0.5)
    for jaccards in ((0.5,), (0.5, 0.6)):
        store_metrics(run, *jaccards)
        assert main(["runs", "track", run.uri, "--to", "wandb"]) == 0
    first, second = sorted(read_runs(folder), key=lambda found: len(found["history"]))
    assert first["id"] == second["id"]
    assert [sorted(found["history"]) for found in (first, second)] == [[20], [20, 40]]


def test_a_study_is_a_group(folder: Path, tmp_path: Path) -> None:
    study, config = store_study(str(tmp_path / "study"), "search.trials=2", epochs=1)
    for trial in study.trials():
        trial.run.create_or_resume(trial.build_config(config), FINGERPRINT)
        store_metrics(trial.run, 0.5)
        trial.mark_done(TrialStatus.FINISHED, 10.0)
    assert main(["runs", "track", study.uri, "--to", "wandb"]) == 0
    found = read_runs(folder)
    assert sorted(run["name"] for run in found) == ["study", "trial_000", "trial_001"]
    assert {run["group"] for run in found} == {"study"}

"""Selecting an ensemble of trained runs, and evaluating it on the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from segan import storage
from segan.cli.main import main
from segan.config import Config
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from segan.errors import SeganError, StorageError, UsageError
from segan.evaluation.score import score_pair, summarise
from segan.evaluation.select import NUM_MEMBERS, find_candidates
from segan.inference.predictor import Predictor
from segan.report.ensemble import build_ensemble
from segan.runs.ensemble import Ensemble, read_ensemble
from segan.runs.run import Run
from segan.training.launch import train_local
from tests.inference.models import copy_files, read_files, run_uri, tiny_config

WIDTH, HEIGHT = 80, 64


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("archive"))
    sizes = {"train": 8, "validation": 4, "test": 3}
    generate_archive(sizes, 0, lambda name, body: storage.write_bytes(f"{uri}/{name}", body), 64)
    return uri


@pytest.fixture(scope="module")
def records(archive: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("records"))
    ingest(open_archive(archive), uri, IngestOptions((WIDTH, HEIGHT)), local_executor(1))
    return uri


@pytest.fixture(scope="module")
def study(records: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of four trials that differ by their seed."""
    uri = str(tmp_path_factory.mktemp("study"))
    write_study(uri, [f"t{seed}" for seed in range(4)])
    for seed in range(4):
        train_local(tiny_config(records, f"training.seed={seed}"), Run(f"{uri}/trials/t{seed}"))
    return uri


def test_build_and_evaluate(
    study: str, archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{tmp_path}/e"
    assert main(["ensemble", "build", "--study", study, "--out", out, "--greedy", "--json"]) == 0
    built = Ensemble.model_validate_json(capsys.readouterr().out)
    assert built == read_ensemble(out)
    assert len({member.uri.split("/trials/")[1][:2] for member in built.members}) == NUM_MEMBERS

    assert main(["evaluate", out, archive, "--local", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for member, source in zip(found["members"], built.members, strict=True):
        alone = Predictor.load(source.uri)
        expected = summarise(
            [score_pair(alone, pair) for pair in open_archive(archive).split("test")]
        )
        assert {name: member[name] for name in ("accuracy", "dice", "jaccard")} == {
            name: expected[name] for name in ("accuracy", "dice", "jaccard")
        }
        assert member["threshold"] == alone.threshold
    assert (found["num_images"], found["threshold"]) == (3, built.threshold)

    assert main(["evaluate", out, archive, "--local"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"member {i}" in "\n".join(lines) for i in (1, 2, 3))
    row = next(line for line in lines if line.split()[:1] == ["jaccard"] or " jaccard " in line)
    scores = [found["jaccard"], *(member["jaccard"] for member in found["members"])]
    assert all(f"{score:.4f}" in row for score in scores)


def test_find_candidates_of_a_study(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidates = find_candidates(study)
    jaccards = [c.jaccard for c in candidates]
    assert (
        jaccards
        == sorted(Run(f"{study}/trials/t{i}").best_checkpoint().jaccard for i in range(4))[::-1]
    )
    members = [word for c in candidates[1:] for word in ("--member", run_uri(c))]
    assert main(["ensemble", "build", *members, "--out", f"{tmp_path}/e"]) == 0
    assert [m.uri for m in read_ensemble(f"{tmp_path}/e").members] == [
        c.uri for c in candidates[1:]
    ]
    shown = capsys.readouterr().out
    assert f"ensemble at {tmp_path}/e on validation" in shown
    assert f"{read_ensemble(f'{tmp_path}/e').scores['jaccard']:.4f}" in shown


def test_wrong_arguments(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensemble", "build", "--out", f"{tmp_path}/e"]) == 2
    assert "--study" in capsys.readouterr().err
    assert (
        main(["ensemble", "build", "--out", f"{tmp_path}/e", "--member", study])
        == SeganError.exit_code
    )


def test_too_few_runs(study: str, tmp_path: Path) -> None:
    for trial in ("t0", "t1"):
        copy_files(f"{study}/trials/{trial}", f"{tmp_path}/small/trials/{trial}")
    write_study(f"{tmp_path}/small", ["t0", "t1", "begun"])
    with pytest.raises(UsageError, match=r"found 2: .*t0, .*t1; without one: .*begun"):
        find_candidates(f"{tmp_path}/small")


def test_other_records_are_refused(study: str, archive: str, tmp_path: Path) -> None:
    records = f"{tmp_path}/records"
    ingest(open_archive(archive), records, IngestOptions((90, 68)), local_executor(1))
    with pytest.raises(UsageError, match="--records"):
        build_ensemble(f"{tmp_path}/out", find_candidates(study), records)
    assert read_files(f"{tmp_path}/out") == {}


def test_missing_study(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"study\.json: not found"):
        find_candidates(str(tmp_path))


def write_study(uri: str, trials: Sequence[str]) -> None:
    entries = [{"name": name, "parameters": {}} for name in trials]
    storage.write_json(
        f"{uri}/study.json",
        {
            "identity": {"command": "tune"},
            "config": Config().model_dump(mode="json"),
            "trials": entries,
        },
    )

"""Runs and checkpoints from storage alone: what there is, and bringing it here unharmed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.local.s3 import S3Server
from segan import s3, storage
from segan.config import Config, load_config
from segan.errors import UsageError
from segan.inference.ensemble import Choice, Ensemble, MemberEntry, write_ensemble
from segan.inference.predictor import Predictor
from segan.runs import SEGMENTOR, Run, find_checkpoint
from segan.search import Study
from tests.inference.models import content, copy
from tests.test_cli import TINY, refusal, segan

FILES = {SEGMENTOR: b"weights of S" * 99, "critic.safetensors": b"C" * 7, "trainer.pt": b"\0\1"}
WORDS = ["training.epochs=3", "optimizer.learning_rate=0.001"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds a run of three real epochs."""
    root = tmp_path_factory.mktemp("trained")
    counts = ["--train", 8, "--validation", 2, "--test", 0, "--short-side", 64]
    records = f"data.records={root}/records"
    for words in (
        ["synth", root / "archive", *counts],
        ["ingest", root / "archive", root / "records", "--width", 72, "--height", 64, "--local"],
        ["train", root / "runs" / "real", records, *TINY, "training.epochs=3", "--local"],
    ):
        done = segan(*words)
        assert done.code == 0, done.err
    return str(root / "runs")


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def here(tmp_path: Path) -> Run:
    """A run whose second checkpoint is the best and whose third is the latest."""
    return write_run(str(tmp_path / "run"), 0.1, 0.6, 0.3)


def write_run(uri: str, *jaccards: float, config: Config | None = None) -> Run:
    """A run with a checkpoint of each Jaccard, and metrics of the same."""
    run, config = Run(uri), config or load_config(None, WORDS)
    run.begin(config, "the data")
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
        }
        lines += [
            {"kind": "step", "epoch": epoch, "samples": 10 * epoch, "learning_rate": 1 / epoch}
        ]
        lines += [{"kind": "epoch", **metrics}]
        info = {"epochs": epoch, "samples": 10 * epoch, "metrics": metrics}
        frame = {"frame": {"width": 90, "height": 68}, "config": config.model_dump(mode="json")}
        files = FILES | {SEGMENTOR: FILES[SEGMENTOR] + bytes([epoch])}
        run.save(f"epoch_{epoch:05d}", files, info | frame)
    run.write_metrics(lines)
    return run


def write_study(uri: str) -> None:
    """A finished trial, one that was given up, one that was begun and one that was not."""
    config = load_config(None, ["training.epochs=2", "search.trials=4"])
    trials = Study(uri).begin(config, "the data")
    for trial, jaccards in zip(trials[:3], [(0.2, 0.5), (0.1,), ()], strict=True):
        write_run(trial.run.uri, *jaccards, config=trial.configure(config))
    trials[0].finish("finished", 2.0)
    trials[1].finish("given up after epoch 1", 1.0)


def write_three(uri: str, run: Run) -> list[str]:
    """An ensemble of a run's checkpoints; returns their URIs."""
    found = run.checkpoints()
    members = tuple(
        MemberEntry(
            uri=c.uri, k=1.0, files={SEGMENTOR: dict(c.files[SEGMENTOR])}, info=dict(c.info)
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
        trained_on="train",
        validated_on="validation",
        frame={"width": 90, "height": 68},
        classes=1,
    )
    write_ensemble(uri, ensemble, found, "a card")
    return [*names]


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def tear(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damage(uri: str, how: Callable[[bytes], bytes] = flip) -> None:
    storage.write_bytes(uri, how(storage.read_bytes(uri)))


# Runs


def test_runs_are_listed_by_name_with_what_became_of_each(root: str) -> None:
    write_run(f"{root}/runs/b", 0.1, 0.6, 0.3)
    write_run(f"{root}/runs/a", 0.4)
    write_study(f"{root}/studies/k")
    found = segan("runs", "ls", root, "--json").json
    keys = ("name", "epochs", "asked", "jaccard", "epoch", "state", "images_per_second")
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("runs/a", 1, 3, 0.4, 1, "open", 21),
        ("runs/b", 3, 3, 0.6, 2, "finished", 23),
        ("studies/k/trials/trial_000", 2, 2, 0.5, 2, "finished", 22),
        ("studies/k/trials/trial_001", 1, 2, 0.1, 1, "given up after epoch 1", 21),
        ("studies/k/trials/trial_002", 0, 2, None, None, "open", None),
    ]
    assert [row["run"] for row in found[:2]] == [f"{root}/runs/a", f"{root}/runs/b"]
    assert all(row["started"][:13] <= row["written"] for row in found)
    assert segan("runs", "ls", f"{root}/runs/b/", "--json").json == [found[1] | {"name": "b"}]


def test_the_table_of_runs_is_for_people(here: Run) -> None:
    write_run(f"{here.uri}/../other", 0.25)
    done = segan("runs", "ls", str(Path(here.uri).parent))
    assert done.code == 0
    assert "0.6000 at 2" in done.out
    assert "1/3" in done.out
    assert "open, " in done.out
    assert done.err.startswith("open: not over, ")


def test_a_run_that_cannot_be_read_leaves_the_others_in_the_list(here: Run, tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/broken/run.json", b"{half")
    storage.write_bytes(f"{tmp_path}/other/run.json", b"[]")
    found = segan("runs", "ls", tmp_path, "--json").json
    assert [(row["name"], row["state"]) for row in found] == [
        ("broken", "run.json is not a run's"),
        ("other", "run.json is not a run's"),
        ("run", "finished"),
    ]


def test_neighbours_whose_names_begin_alike_are_kept_apart(tmp_path: Path) -> None:
    for name, jaccard in (("a", 0.1), ("a-b", 0.2), ("a.b", 0.3), ("a/b", 0.4), ("ab", 0.5)):
        write_run(f"{tmp_path}/{name}", jaccard)
    found = segan("runs", "ls", tmp_path, "--json").json
    assert {row["name"]: row["jaccard"] for row in found} == {
        "a": 0.1,
        "a-b": 0.2,
        "a.b": 0.3,
        "a/b": 0.4,
        "ab": 0.5,
    }


def test_where_no_run_is_that_is_said(root: str) -> None:
    said = refusal(1, "runs", "ls", root)
    assert said == f"{root}: no run here nor below (no run.json)"


def test_a_real_run_is_shown(trained: str, root: str) -> None:
    copy(trained, root)
    found = segan("runs", "show", f"{root}/real", "--json").json
    changed = {key: (v["value"], v["default"]) for key, v in found["changed"].items()}
    assert changed["network.width"] == (2, 64)
    assert changed["training.epochs"] == (3, 300)
    assert set(changed) == {word.split("=")[0] for word in TINY} | {"data.records"}
    assert found["config"]["network"]["classes"] == 1
    assert found["fingerprint"]
    assert {"torch", "numpy"} <= set(found["packages"])
    assert [line["epoch"] for line in found["epochs"]] == [1, 2, 3]
    for line in found["epochs"]:
        assert {"critic_loss", "segmentor_loss", "jaccard", "k", "wait_share"} <= set(line)
    best = max(found["epochs"], key=lambda line: line["jaccard"])
    summary = found["summary"]
    assert (summary["epochs"], summary["state"]) == (3, "finished")
    assert (summary["jaccard"], summary["epoch"]) == (best["jaccard"], best["epoch"])
    marks = {name: row["epoch"] for row in found["checkpoints"] for name in row["is"]}
    assert marks == {"best": best["epoch"], "latest": 3}
    table = segan("runs", "show", f"{root}/real").out
    for word in ("network.width", "as by default", "C loss", "waiting", "epoch_00003", "latest"):
        assert word in table


def test_an_epochs_learning_rate_is_that_of_its_last_logged_step(here: Run) -> None:
    found = segan("runs", "show", here, "--json").json["epochs"]
    assert [line["learning_rate"] for line in found] == [1, 1 / 2, 1 / 3]


def test_what_differs_from_the_defaults_comes_first(here: Run) -> None:
    shown = segan("runs", "show", here).out
    assert shown.index("optimizer.learning_rate") < shown.index("as by default")
    assert shown.index("as by default") < shown.index("betas")


def test_a_study_is_shown_as_its_leaderboard_and_nothing_is_written(root: str) -> None:
    write_study(f"{root}/k")
    before = storage.list_files(root)
    found = segan("runs", "show", f"{root}/k", "--json").json
    assert [row["trial"] for row in found["trials"][:2]] == ["trial_000", "trial_001"]
    done = segan("runs", "show", f"{root}/k")
    assert "best Jaccard 0.5000" in done.out
    assert f"segan runs show {root}/k/trials/trial_000" in done.err
    assert storage.list_files(root) == before


def test_what_is_no_run_is_named_for_what_it_is(here: Run, tmp_path: Path) -> None:
    write_three(f"{tmp_path}/three", here)
    inside = f"{here}/checkpoints/epoch_00001"
    assert refusal(2, "runs", "show", inside) == (
        f"{inside}: inside a run; expected the run's own URI, {here}"
    )
    assert "an ensemble and no run" in refusal(2, "runs", "show", tmp_path / "three")
    assert "no run here (no run.json)" in refusal(1, "runs", "show", tmp_path / "none")
    write_study(f"{tmp_path}/k")
    assert "a study, whose trials are runs" in refusal(2, "checkpoints", "ls", tmp_path / "k")


# Checkpoints


def test_checkpoints_within_epochs_and_torn_manifests_are_listed(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6)
    first = run.checkpoint("epoch_00001")
    info = {**first.info, "samples": 25, "epochs": 2, "metrics": {"epoch": 3, "step": 5}}
    run.save("step_0000005", FILES, info)
    damage(f"{run}/checkpoints/epoch_00001/manifest.json", tear)
    rows = {row["name"]: row for row in segan("checkpoints", "ls", run, "--json").json}
    assert {name: (row["epoch"], row["jaccard"], row["is"]) for name, row in rows.items()} == {
        "epoch_00001": (None, None, []),
        "epoch_00002": (2, 0.6, ["best"]),
        "step_0000005": (2, None, ["latest"]),
    }
    assert [row["whole"] for row in rows.values()] == [False, True, True]
    assert "no checkpoint's manifest" in rows["epoch_00001"]["wrong"]
    assert "step_0000005" in segan("checkpoints", "ls", run).out
    (summary,) = segan("runs", "ls", run, "--json").json
    assert (summary["epochs"], summary["jaccard"], summary["epoch"]) == (2, 0.6, 2)
    assert "left out: epoch_00001: " in segan("checkpoints", "verify", run).err


def test_a_checkpoint_between_validations_is_no_model_for_use(here: Run) -> None:
    """It has no threshold."""
    within = {**here.checkpoint("best").info, "samples": 35, "metrics": {"epoch": 4, "step": 7}}
    here.save("step_0000007", FILES, within)
    with pytest.raises(UsageError, match="step_0000007: saved between two validations, so it has"):
        Predictor.load(f"{here}/checkpoints/latest")


def test_checkpoints_are_listed_and_half_ones_are_not_whole(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3, 0.9)
    damage(f"{run}/checkpoints/epoch_00004/trainer.pt", tear)
    storage.delete_file(f"{run}/checkpoints/epoch_00001/critic.safetensors")
    storage.write_bytes(f"{run}/checkpoints/epoch_00005/{SEGMENTOR}", b"half")
    found = segan("checkpoints", "ls", run, "--json").json
    assert [(row["name"], row["whole"], row["is"]) for row in found] == [
        ("epoch_00001", False, []),
        ("epoch_00002", True, []),
        ("epoch_00003", True, []),
        ("epoch_00004", False, ["best", "latest"]),  # as for every command that takes one
        ("epoch_00005", False, []),
    ]
    assert [row["wrong"] for row in found] == [
        "critic.safetensors: expected 7 bytes, found no such file",
        "",
        "",
        "trainer.pt: expected 2 bytes, found 1",
        "no manifest.json",
    ]
    names = content(f"{run}/checkpoints/epoch_00002")
    assert found[1]["bytes"] == sum(map(len, names.values()))
    assert (found[1]["epoch"], found[1]["jaccard"]) == (2, 0.6)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    run = write_run(f"{tmp_path}/run")
    assert segan("checkpoints", "ls", run, "--json").json == []
    assert segan("checkpoints", "ls", run).err == f"{run}: no checkpoint yet\n"


@pytest.mark.parametrize(
    ("source", "words", "epoch"),
    [
        ("", [], 2),
        ("", ["--which", "best"], 2),
        ("", ["--which", "latest"], 3),
        ("", ["--which", "epoch_00001"], 1),
        ("/checkpoints/epoch_00001", [], 1),
        ("/checkpoints/latest", [], 3),
        ("/checkpoints/best/", ["--which", "epoch_00002"], 2),
    ],
)
def test_a_checkpoint_is_pulled_by_any_of_its_names(
    here: Run, tmp_path: Path, source: str, words: list[str], epoch: int
) -> None:
    assert segan("checkpoints", "pull", f"{here}{source}", tmp_path / "out", *words).code == 0
    assert content(f"{tmp_path}/out") == content(f"{here}/checkpoints/epoch_0000{epoch}")


def test_a_pulled_checkpoint_is_a_model(trained: str, root: str, tmp_path: Path) -> None:
    copy(trained, root)
    out = tmp_path / "out"
    done = segan("checkpoints", "pull", f"{root}/real", out, "--only", "segmentor", "--json")
    assert done.json["files"] == done.json["brought"] == [SEGMENTOR]
    assert {path.name for path in out.iterdir()} == {SEGMENTOR, "manifest.json"}
    best = find_checkpoint(f"{root}/real")
    assert find_checkpoint(str(out)).info == best.info
    assert Predictor.load(str(out)).threshold == best.threshold
    assert segan("checkpoints", "verify", out).code == 0
    rest = segan("checkpoints", "pull", f"{root}/real", out, "--json").json
    assert set(rest["brought"]) == set(best.files) - {SEGMENTOR}
    assert content(str(out)) == content(best.uri)


def test_what_is_there_and_right_is_left_alone(here: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["checkpoints", "pull", here, out]
    assert segan(*words).code == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert segan(*words, "--json").json["brought"] == []
    assert segan(*words, "--only", "segmentor", "--json").json["brought"] == []
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "trainer.pt").unlink()  # as after a pull that was interrupted
    (out / "manifest.json").unlink()
    assert segan(*words, "--json").json["brought"] == ["trainer.pt"]
    assert content(str(out)) == content(find_checkpoint(here.uri).uri)


@pytest.mark.parametrize("name", [SEGMENTOR, "trainer.pt", "manifest.json"])
def test_other_files_are_not_overwritten(here: Run, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    storage.write_bytes(f"{out}/{name}", b'{"mine": 1}')
    said = refusal(2, "checkpoints", "pull", here, out).splitlines()[-1]
    assert said.startswith(f"{out}/{name}: ")
    assert content(str(out)) == {name: b'{"mine": 1}'}


def test_another_checkpoint_is_not_pulled_over_one(here: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segan("checkpoints", "pull", here, out)
    before = content(str(out))
    assert "use an empty folder" in refusal(
        2, "checkpoints", "pull", here, out, "--which", "latest"
    )
    assert content(str(out)) == before


@pytest.mark.parametrize("how", [flip, tear, lambda c: c + b"\0", lambda _: b""])
def test_a_damaged_file_is_not_put_in_place(
    root: str, tmp_path: Path, how: Callable[[bytes], bytes]
) -> None:
    run, out = write_run(f"{root}/run", 0.5), tmp_path / "out"
    (checkpoint,) = run.checkpoints()
    name = "trainer.pt"
    damage(f"{checkpoint.uri}/{name}", how)
    found = storage.sha256(storage.read_bytes(f"{checkpoint.uri}/{name}"))
    done = segan("checkpoints", "pull", run, out)
    assert done.code == 1
    said = done.err.splitlines()[-1]
    assert said.startswith(f"segan: {checkpoint.uri}/{name}: expected sha256 ")
    assert storage.sha256(FILES[name]) in said
    assert found in said
    assert {path.name for path in out.iterdir()} == {SEGMENTOR, "critic.safetensors"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil"])
def test_no_name_leaves_its_folder(here: Run, tmp_path: Path, name: str) -> None:
    (checkpoint, *_) = here.checkpoints()
    files = {name: {"sha256": storage.sha256(b""), "size": 0}}
    storage.write_json(f"{checkpoint.uri}/manifest.json", {"files": files, "info": checkpoint.info})
    before = content(str(tmp_path))
    done = segan("checkpoints", "pull", checkpoint.uri, tmp_path / "out")
    assert done.code == 2
    assert f"{name!r}: not a name inside" in done.err
    assert content(str(tmp_path)) == before
    said = refusal(1, "checkpoints", "pull", here, tmp_path / "out", "--which", name)
    assert f"no whole checkpoint {name!r}; expected one of epoch_00001, " in said


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["RUN", "s3://bucket/x"], 2, "expected a local folder"),
        (["RUN", "OUT", "--only", "weights"], 2, "no file 'weights'; expected one of critic"),
        (["RUN/checkpoints/epoch_00001", "OUT", "--which", "best"], 2, "give the run's URI"),
        (["RUN", "OUT", "--which", "epoch_00009"], 1, "expected one of epoch_00001, epoch_00002"),
        (["OUT", "OUT"], 1, "neither a checkpoint nor a run with a whole one"),
        (["RUN", "RUN/run.json"], 1, "run.json"),
    ],
)
def test_a_pull_that_cannot_be_is_said(
    here: Run, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    places = [w.replace("RUN", here.uri).replace("OUT", f"{tmp_path}/out") for w in words]
    assert said in refusal(code, "checkpoints", "pull", *places)
    assert not (tmp_path / "out").exists()


# Verifying


def test_what_is_as_written_is_verified(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3)
    found = segan("checkpoints", "verify", run, "--json")
    assert found.code == 0
    assert [one["wrong"] for one in found.json] == [""] * 9
    one = segan("checkpoints", "verify", f"{run}/checkpoints/latest", "--json").json
    assert [v["uri"] for v in one] == [
        f"{run}/checkpoints/epoch_00003/{name}" for name in sorted(FILES)
    ]


def test_every_file_that_is_wrong_is_named(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3)
    folder = f"{run}/checkpoints"
    damage(f"{folder}/epoch_00001/{SEGMENTOR}", flip)
    damage(f"{folder}/epoch_00002/{SEGMENTOR}", tear)
    storage.delete_file(f"{folder}/epoch_00003/trainer.pt")
    done = segan("checkpoints", "verify", run)
    assert done.code == 1
    said = done.err.splitlines()[-1]
    assert said.startswith("segan: 3 of 9 files are not as written: ")
    assert f"{folder}/epoch_00001/{SEGMENTOR}: expected sha256 " in said
    assert f"{folder}/epoch_00002/{SEGMENTOR}: expected 1189 bytes, found 594" in said
    assert f"{folder}/epoch_00003/trainer.pt: expected 2 bytes, found no such file" in said
    assert segan("checkpoints", "verify", f"{folder}/epoch_00001").code == 1
    assert sum(bool(v["wrong"]) for v in segan("checkpoints", "verify", run, "--json").json) == 3


def test_half_a_checkpoint_is_left_out_with_a_word(here: Run, tmp_path: Path) -> None:
    storage.write_bytes(f"{here}/checkpoints/epoch_00004/{SEGMENTOR}", b"half")
    done = segan("checkpoints", "verify", here)
    assert done.code == 0
    assert "left out: epoch_00004: no manifest.json" in done.err
    assert "no run here" in refusal(1, "checkpoints", "verify", tmp_path / "none")
    empty = write_run(f"{tmp_path}/empty")
    assert "without checkpoints" in refusal(1, "checkpoints", "verify", empty)


def test_an_ensemble_is_verified_by_its_members(root: str) -> None:
    run = write_run(f"{root}/run", 0.1, 0.6, 0.3)
    write_three(f"{root}/three", run)
    words = ["checkpoints", "verify", f"{root}/three"]
    assert len(segan(*words, "--json").json) == 3
    damage(f"{root}/three/2/{SEGMENTOR}")
    done = segan(*words)
    assert done.code == 1
    assert f"1 of 3 files are not as written: {root}/three/2/{SEGMENTOR}: " in done.err


# Links


def get(link: str) -> bytes:
    with urllib.request.urlopen(link, timeout=10) as answer:  # no credentials are sent
        return answer.read()


@pytest.mark.integration
@pytest.mark.parametrize(("which", "epoch"), [("best", 2), ("latest", 3), ("epoch_00001", 1)])
def test_a_link_needs_no_keys(bucket: str, which: str, epoch: int) -> None:
    run = write_run(f"{bucket}/a run", 0.1, 0.6, 0.3)
    done = segan("checkpoints", "url", run, "--which", which)
    assert done.code == 0
    body = get(done.out.strip())
    assert body == FILES[SEGMENTOR] + bytes([epoch])
    assert storage.sha256(body) in done.err
    manifest = ["--file", "manifest.json", "--json"]
    link = segan("checkpoints", "url", f"{run}/checkpoints/{which}", *manifest).json["url"]
    assert json.loads(get(link))["info"]["epochs"] == epoch


@pytest.mark.integration
def test_a_link_expires_and_cannot_be_bent(bucket: str) -> None:
    run = write_run(f"{bucket}/run", 0.1, 0.6)
    link = segan("checkpoints", "url", run, "--expires", 1).out.strip()
    other = segan("checkpoints", "url", run).out.strip().replace("epoch_00002", "epoch_00001")
    time.sleep(2.5)
    for refused in (link, other):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(refused)
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
    assert "no usable answer from http://127.0.0.1:9" in refusal(1, "runs", "ls", bucket)


@pytest.mark.integration
@pytest.mark.parametrize("seconds", [0, -1, 7 * 24 * 3600 + 1])
def test_a_links_time_is_bounded(bucket: str, seconds: int) -> None:
    run = write_run(f"{bucket}/run", 0.1)
    said = refusal(2, "checkpoints", "url", run, "--expires", seconds)
    assert said == f"{seconds} s: a link lasts from 1 s to 604800 s, which is 7 days"


def test_only_a_bucket_has_links(here: Run) -> None:
    assert "only what lies in s3:// has links" in refusal(2, "checkpoints", "url", here)
    said = refusal(2, "checkpoints", "url", here, "--file", "../../run.json")
    assert "no file '../../run.json'; expected one of " in said


# Without torch and Ray

WITHOUT = """
import contextlib, io, json, sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray"):
            raise ImportError(f"{name} was to be imported")

sys.meta_path.insert(0, Refusing())
from segan.cli import main

done = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    done.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


def without_torch_and_ray(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command, in a process that can import neither."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return [tuple(one) for one in json.loads(done.stdout)]


def test_storage_alone_is_enough(trained: str, root: str, tmp_path: Path) -> None:
    copy(trained, root)
    write_study(f"{root}/k")
    run, out = f"{root}/real", f"{tmp_path}/out"
    write_three(f"{root}/three", write_run(f"{root}/other", 0.1, 0.6, 0.3))
    commands = [
        ["runs", "ls", root],
        ["runs", "show", run],
        ["runs", "show", f"{root}/k"],
        ["checkpoints", "ls", run],
        ["checkpoints", "pull", run, out, "--which", "latest"],
        ["checkpoints", "verify", run],
        ["checkpoints", "verify", f"{root}/three"],
        ["checkpoints", "verify", out],
        ["runs", "show", f"{root}/three"],
        ["checkpoints", "url", run],
    ]
    *done, (shown, _, ensemble), (code, link, said) = without_torch_and_ray(*commands)
    assert [code for code, *_ in done] == [0] * 8, done
    assert (shown, "an ensemble and no run" in ensemble) == (2, True)
    latest = find_checkpoint(run, "latest")
    assert content(out) == content(latest.uri)
    if root.startswith("s3://"):
        assert get(link.strip()) == find_checkpoint(run).read(SEGMENTOR)
    else:
        assert (code, "only what lies in s3:// has links" in said) == (2, True)


@pytest.mark.integration
def test_the_keys_of_a_reader_are_asked_for(s3: S3Server, bucket: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        for command in (["runs", "ls"], ["runs", "show"], ["checkpoints", "ls"]):
            assert "access refused; check AWS_ACCESS_KEY_ID" in refusal(1, *command, bucket)
        for command in (["verify", bucket], ["url", bucket], ["pull", bucket, "out"]):
            assert "access refused" in refusal(1, "checkpoints", *command)

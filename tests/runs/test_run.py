"""Runs: incomplete checkpoints are ignored, and only the same configuration resumes a run."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segan import storage
from segan.config import Config, load_config
from segan.errors import CorruptedError, LeaseLostError, SeganError, StorageError, UsageError
from segan.runs.checkpoint import CheckpointInfo, open_checkpoint
from segan.runs.metrics_file import MetricsWriter, write_metrics
from segan.runs.run import Run, find_checkpoint
from segan.runs.trial import Trial, TrialStatus

FILES = {"segmentor.safetensors": b"weights of S", "trainer/state.pt": b"\x00\x01\x02" * 1000}
CONFIG = load_config(None, ["network.width=8"])


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return Run(f"{root}/runs/first")


@pytest.fixture
def local_run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "runs" / "first"))


def checkpoint_info(samples: int, jaccard: float | None = 0.5) -> CheckpointInfo:
    metrics = {} if jaccard is None else {"jaccard": jaccard, "threshold": 0.4}
    config = CONFIG.model_dump(mode="json")
    return CheckpointInfo(epochs=0, samples=samples, metrics=metrics, config=config)


def save_checkpoints(run: Run, *jaccards: float | None) -> None:
    """A checkpoint of each Jaccard, an epoch of 10 samples apart."""
    for epoch, jaccard in enumerate(jaccards, start=1):
        run.save_checkpoint(f"epoch_{epoch:05d}", FILES, checkpoint_info(epoch * 10, jaccard))


def checkpoint_names(run: Run) -> list[str]:
    return [checkpoint.name for checkpoint in run.checkpoints()]


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was_saved(run: Run) -> None:
    saved = run.save_checkpoint("epoch_00001", FILES, checkpoint_info(10, 0.7))
    (found,) = run.checkpoints()
    assert found == saved
    assert {name: found.read(name) for name in found.files} == FILES
    assert (found.samples, found.jaccard, found.config) == (10, 0.7, CONFIG)
    assert found.uri == f"{run.uri}/checkpoints/epoch_00001"


def test_a_run_without_checkpoints_has_none(run: Run) -> None:
    assert (run.checkpoints(), run.latest_checkpoint(), run.best_checkpoint()) == ([], None, None)


def test_checkpoints_are_listed_oldest_first(run: Run) -> None:
    for epoch in (10, 2, 1):
        run.save_checkpoint(f"epoch_{epoch:05d}", FILES, checkpoint_info(epoch))
    assert checkpoint_names(run) == ["epoch_00001", "epoch_00002", "epoch_00010"]


@pytest.mark.parametrize(
    ("jaccards", "best", "kept"),
    [
        ((0.1, 0.6, 0.3, 0.2), 2, [2, 3, 4]),
        ((0.1, 0.2, 0.3), 3, [2, 3]),
        ((0.6, 0.2, 0.1, 0.6), 1, [1, 3, 4]),  # of equals the earliest
        ((0.0, 0.0), 1, [1, 2]),
        ((0.5,), 1, [1]),
        ((0.1, 0.6, 0.3, None, None), 2, [2, 4, 5]),  # the last two between validations
        ((None, None, None), None, [2, 3]),
    ],
)
def test_the_best_the_latest_and_the_one_before_are_kept(
    run: Run, jaccards: tuple[float | None, ...], best: int | None, kept: list[int]
) -> None:
    save_checkpoints(run, *jaccards)
    found, latest = run.best_checkpoint(), run.latest_checkpoint()
    assert latest
    assert (found and found.name) == (best and f"epoch_{best:05d}")
    assert latest.samples == 10 * len(jaccards)
    run.prune_checkpoints(latest)
    assert checkpoint_names(run) == [f"epoch_{epoch:05d}" for epoch in kept]
    assert run.best_checkpoint() == found
    assert run.latest_checkpoint() == latest
    left = {file.name.split("/")[1] for file in storage.list_files(run.uri)}
    assert left == set(checkpoint_names(run))


def test_later_and_incomplete_checkpoints_are_pruned(run: Run) -> None:
    """A run that went on from before a damaged checkpoint saves anew on its way to it."""
    save_checkpoints(run, 0.1, 0.2, 0.3, 0.9)
    storage.write_bytes(f"{run.uri}/checkpoints/step_0000001/half", b"")
    storage.write_bytes(f"{run.uri}/checkpoints/epoch_00001/manifest.json", b"{")
    (_, latest, _) = run.checkpoints()
    run.prune_checkpoints(latest)
    assert checkpoint_names(run) == ["epoch_00002", "epoch_00003"]
    left = {file.name.split("/")[1] for file in storage.list_files(run.uri)}
    assert left == set(checkpoint_names(run))


def test_checkpoints_of_steps_and_epochs_are_listed_as_they_came(run: Run) -> None:
    for name, samples in (("epoch_00001", 24), ("step_0000007", 28), ("step_0000003", 12)):
        run.save_checkpoint(
            name, FILES, checkpoint_info(samples, 0.5 if name.startswith("epoch") else None)
        )
    assert checkpoint_names(run) == ["step_0000003", "epoch_00001", "step_0000007"]
    assert [run.get_checkpoint(word).name for word in ("best", "latest", "step_0000003")] == [
        "epoch_00001",
        "step_0000007",
        "step_0000003",
    ]
    assert find_checkpoint(run.uri).name == "epoch_00001"
    within = run.get_checkpoint("latest")
    assert not within.is_validated
    with pytest.raises(UsageError, match="between two validations, so it has no threshold"):
        _ = within.threshold


def test_a_run_without_a_validation_has_no_best(local_run: Run) -> None:
    local_run.save_checkpoint("step_0000003", FILES, checkpoint_info(12, None))
    with pytest.raises(StorageError, match="no complete checkpoint 'best'; expected one of step_"):
        find_checkpoint(local_run.uri)
    assert find_checkpoint(local_run.uri, "latest").samples == 12


def test_an_incomplete_checkpoint_is_ignored(run: Run) -> None:
    save_checkpoints(run, 0.5)
    half = f"{run.uri}/checkpoints/epoch_00002"
    storage.write_bytes(f"{half}/segmentor.safetensors", b"weights of S")
    assert checkpoint_names(run) == ["epoch_00001"]
    with pytest.raises(StorageError, match="no complete checkpoint here"):
        open_checkpoint(half)


def test_a_checkpoint_is_saved_over_half_of_one(run: Run) -> None:
    storage.write_bytes(f"{run.uri}/checkpoints/epoch_00001/left.over", b"")
    save_checkpoints(run, 0.5)
    assert {file.name for file in storage.list_files(f"{run.uri}/checkpoints/epoch_00001")} == {
        *FILES,
        "manifest.json",
    }


def test_a_manifest_further_down_is_no_checkpoint(local_run: Run) -> None:
    save_checkpoints(local_run, 0.5)
    storage.write_json(f"{local_run.uri}/checkpoints/epoch_00001/deeper/manifest.json", {})
    assert checkpoint_names(local_run) == ["epoch_00001"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: b"",
        lambda c: c[: len(c) // 2],
        lambda c: b"\xff" + c[1:],
        lambda c: b"[]",
        lambda c: c.replace(b'"samples": 20', b'"samples": 21'),
        lambda c: c.replace(b'"size"', b'"syze"'),
    ],
    ids=["empty", "torn", "no text", "a list", "another number", "another word"],
)
def test_a_damaged_manifest_is_no_checkpoints(
    local_run: Run, damage: Callable[[bytes], bytes]
) -> None:
    save_checkpoints(local_run, 0.1, 0.9)
    uri = f"{local_run}/checkpoints/epoch_00002"
    content = storage.read_bytes(f"{uri}/manifest.json")
    storage.write_bytes(f"{uri}/manifest.json", damage(content))
    assert damage(content) != content
    assert checkpoint_names(local_run) == ["epoch_00001"]
    assert (
        local_run.best_checkpoint() == local_run.latest_checkpoint() == local_run.checkpoints()[0]
    )
    complete, corrupted = local_run.scan_checkpoints()
    assert (len(complete), list(corrupted)) == (1, ["epoch_00002"])
    with pytest.raises(
        CorruptedError, match=f"{uri}/manifest.json: not the manifest of a checkpoint"
    ):
        open_checkpoint(uri)


def flip_last_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [flip_last_bit, lambda c: c[:-1], lambda c: c + b"\0", lambda _: b""]
)
def test_a_damaged_file_is_noticed_and_named(
    local_run: Run, damage: Callable[[bytes], bytes]
) -> None:
    save_checkpoints(local_run, 0.5)
    (checkpoint,) = local_run.checkpoints()
    uri = f"{checkpoint.uri}/segmentor.safetensors"
    storage.write_bytes(uri, damage(storage.read_bytes(uri)))
    with pytest.raises(StorageError) as caught:
        checkpoint.read("segmentor.safetensors")
    assert str(caught.value).startswith(f"{uri}: ")
    assert "do not match the manifest's checksum (12 bytes expected)" in str(caught.value)
    assert checkpoint.read("trainer/state.pt") == FILES["trainer/state.pt"]


def test_a_missing_file_is_named(local_run: Run) -> None:
    save_checkpoints(local_run, 0.5)
    (checkpoint,) = local_run.checkpoints()
    storage.delete_file(f"{checkpoint.uri}/segmentor.safetensors")
    with pytest.raises(StorageError, match=r"segmentor\.safetensors: not found"):
        checkpoint.read("segmentor.safetensors")


# Finding a checkpoint


def test_a_checkpoint_is_found_by_its_own_place_or_the_runs(run: Run) -> None:
    save_checkpoints(run, 0.1, 0.6, 0.3)
    assert find_checkpoint(run.uri).name == "epoch_00002"
    assert find_checkpoint(run.uri + "/").name == "epoch_00002"
    assert find_checkpoint(f"{run.uri}/checkpoints/epoch_00001/").jaccard == 0.1


def test_a_missing_checkpoint_is_reported(run: Run) -> None:
    with pytest.raises(StorageError) as caught:
        find_checkpoint(run.uri)
    assert str(caught.value) == f"{run.uri}: neither a checkpoint nor a run with a complete one"


@pytest.mark.parametrize("manifest", [{"splits": {}, "height": 135}, [], {"files": {}}])
def test_a_manifest_of_something_else_is_no_checkpoint(local_run: Run, manifest: Any) -> None:
    """Records have a manifest of the same name, and are easily given for a run."""
    storage.write_json(f"{local_run.uri}/manifest.json", manifest)
    with pytest.raises(StorageError, match=str(local_run)):
        find_checkpoint(local_run.uri)


# Another process that has taken the run over


def test_nothing_is_written_or_deleted_behind_a_fence(local_run: Run) -> None:
    save_checkpoints(local_run, 0.3, 0.2, 0.1, 0.4)
    local_run.create_or_resume(CONFIG, "f")
    write_metrics(local_run.uri, [{"step": 1}])
    before = {f.name: storage.read_bytes(f"{local_run}/{f.name}") for f in files_of(local_run)}

    def fence() -> None:
        raise LeaseLostError("taken over")

    run = Run(local_run.uri, fence)
    latest = run.latest_checkpoint()
    assert latest is not None
    trial = Trial("trial_000", {}, run)
    for write in (
        lambda: run.save_checkpoint("epoch_00004", FILES, checkpoint_info(40)),
        lambda: run.prune_checkpoints(latest),
        lambda: MetricsWriter(run.uri, 0, run.fence).append([{"samples": 1}]),
        lambda: MetricsWriter(run.uri, 0, run.fence).merge(),
        lambda: run.record_hardware("another machine", {"type": "cpu"}),
        lambda: trial.mark_done(TrialStatus.FINISHED, 1.0),
        lambda: trial.clear_result(),
    ):
        with pytest.raises(LeaseLostError):
            write()
    after = {f.name: storage.read_bytes(f"{local_run}/{f.name}") for f in files_of(local_run)}
    assert after == before


def files_of(run: Run) -> list[storage.FileInfo]:
    return storage.list_files(run.uri)


# Creating and resuming


def test_a_run_stores_its_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGAN_GIT_COMMIT", "abc123")
    run.create_or_resume(CONFIG, "the fingerprint")
    found = run.description()
    assert Config.model_validate(found["config"]) == CONFIG
    assert found["identity"]["fingerprint"] == "the fingerprint"
    assert (found["git_commit"], found["hardware"]) == ("abc123", None)
    assert {"torch", "numpy", "segan"} <= set(found["packages"])


def test_resuming_keeps_the_description(run: Run) -> None:
    run.create_or_resume(CONFIG, "f")
    before = run.description()
    run.create_or_resume(CONFIG, "f")
    assert run.description() == before


def test_the_first_hardware_and_the_latest_device_are_recorded(run: Run) -> None:
    run.create_or_resume(CONFIG, "f")
    run.record_hardware("a machine", {"type": "cuda"})
    run.record_hardware("another machine", {"type": "cpu"})
    description = run.description()
    assert (description["hardware"], description["device"]) == ("a machine", {"type": "cpu"})


@pytest.mark.parametrize(
    "override",
    [
        "network.width=4",
        "training.seed=1",
        "training.epochs=5",
        "optimizer.learning_rate=0.01",
        "augment.hue=0",
        "cluster.workers=2",  # the batch of all workers together
    ],
)
def test_another_configuration_is_refused_by_key(local_run: Run, override: str) -> None:
    local_run.create_or_resume(Config(), "f")
    key, _, value = override.partition("=")
    with pytest.raises(UsageError) as caught:
        local_run.create_or_resume(load_config(None, [override]), "f")
    said = str(caught.value)
    assert said.startswith(f"{local_run}: {key} is ")
    assert f"expected {value}" in said or f"expected {float(value)}" in said


def test_a_run_without_a_newer_key_has_its_default(local_run: Run) -> None:
    local_run.create_or_resume(Config(), "f")
    found = local_run.description()
    del found["identity"]["evaluation.tta"]
    storage.write_json(f"{local_run.uri}/run.json", found)
    local_run.create_or_resume(Config(), "f")
    with pytest.raises(UsageError, match=r"evaluation\.tta is False, expected True"):
        local_run.create_or_resume(load_config(None, ["evaluation.tta=true"]), "f")


def test_a_key_of_another_version_is_named(local_run: Run) -> None:
    local_run.create_or_resume(Config(), "f")
    description = local_run.description()
    description["identity"]["loss.reading"] = "concatenated"
    storage.write_json(f"{local_run.uri}/run.json", description)
    with pytest.raises(UsageError, match=r"another version of segan, .* key loss\.reading; resume"):
        local_run.create_or_resume(Config(), "f")


def test_other_records_are_refused(local_run: Run) -> None:
    local_run.create_or_resume(Config(), "one")
    with pytest.raises(UsageError, match="fingerprint is 'one', expected 'two'"):
        local_run.create_or_resume(Config(), "two")


@pytest.mark.parametrize(
    "override",
    [
        "data.records=s3://moved/records",
        "cluster.gpus_per_worker=1",
        "training.checkpoint_every_steps=7",
        "evaluation.report=false",
    ],
)
def test_a_run_may_move(local_run: Run, override: str) -> None:
    local_run.create_or_resume(Config(), "f")
    local_run.create_or_resume(load_config(None, [override]), "f")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{half"])
def test_an_invalid_run_description_is_refused(local_run: Run, content: bytes) -> None:
    storage.write_bytes(f"{local_run.uri}/run.json", content)
    with pytest.raises(SeganError, match=r"run\.json"):
        local_run.create_or_resume(Config(), "f")


def test_a_missing_run_is_reported(run: Run) -> None:
    with pytest.raises(StorageError) as caught:
        run.description()
    assert str(caught.value) == f"{run.uri}: no run here (no run.json)"


# The rest


def test_a_run_travels_to_another_process(local_run: Run) -> None:
    save_checkpoints(local_run, 0.5)
    assert pickle.loads(pickle.dumps(local_run)).checkpoints() == local_run.checkpoints()


def test_a_local_run_has_an_absolute_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Run("runs/first/")) == f"{tmp_path}/runs/first"

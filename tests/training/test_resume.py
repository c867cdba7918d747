"""Resuming: a run that was stopped, killed or corrupted ends as an uninterrupted one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors

from segan import storage
from segan.config import Config
from segan.data.archive.folds import k_fold_split
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.records.format import read_manifest
from segan.errors import CorruptedError, StoppedError, StorageError, UsageError
from segan.runs.checkpoint import Checkpoint
from segan.runs.run import LANES_KEY, RUN_FILE, Run
from segan.training.launch import train_local
from segan.training.resume import create_or_resume, resolve_resume
from segan.training.trainer import Callbacks, TrainingProgress
from tests.training.helpers import (
    BATCH_SIZE,
    EPOCH_END_SAMPLES,
    FRAME,
    ROWS,
    STEPS,
    configure,
    load_weights,
    metric_lines,
    same_weights,
    scalar_steps,
)

STEP_SAMPLES = [BATCH_SIZE * n for n in range(1, STEPS + 1)]
FILES = ("segmentor.safetensors", "critic.safetensors", "trainer.safetensors")


class AbortError(Exception):
    """Aborts a training in a test."""


def configure_checkpoints(records: str, steps: int) -> Config:
    return configure(records, training={"checkpoint_every_steps": steps})


@pytest.fixture(scope="module")
def uninterrupted_run(records: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that saved at the ends of epochs only and was never stopped."""
    run = Run(str(tmp_path_factory.mktemp("runs") / "undisturbed"))
    train_local(configure(records), run)
    return run


@pytest.fixture(scope="module")
def killed_run_folder(records: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(str(tmp_path_factory.mktemp("runs") / "killed"))
    with pytest.raises(AbortError):
        train_local(configure_checkpoints(records, 2), run, kill_at(11))
    return Path(run.uri)


@pytest.fixture
def killed_run(killed_run_folder: Path, tmp_path: Path) -> Run:
    """A run that saved every second step and was killed in step 11."""
    return Run(str(shutil.copytree(killed_run_folder, tmp_path / "killed")))


def kill_at(step: int) -> Callbacks:
    def on_step_end(progress: TrainingProgress) -> None:
        if progress.samples == step * BATCH_SIZE:
            raise AbortError

    return Callbacks(on_step_end=on_step_end)


def request_stop_at(step: int) -> Callbacks:
    """Requests a stop at the end of a step."""
    seen = [0]
    return Callbacks(
        on_step_end=lambda progress: seen.append(progress.samples),
        should_stop=lambda: seen[-1] >= step * BATCH_SIZE,
    )


def assert_same(run: Run, other: Run) -> None:
    assert same_weights(run, other)
    assert metric_lines(run) == metric_lines(other)
    assert scalar_steps(run, "step/critic_loss") == STEP_SAMPLES
    assert scalar_steps(run, "epoch/jaccard") == list(EPOCH_END_SAMPLES.values())
    one, two = run.latest_checkpoint(), other.latest_checkpoint()
    assert one is not None
    assert two is not None
    # Including Adam's moments and the batch-norm statistics.
    assert one.files == two.files
    assert one.info.progress == two.info.progress


# Checkpoints within epochs


def record_saves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list of the names of checkpoints, to which each is added when it is complete."""
    saved, real = list[str](), Run.save_checkpoint

    def save_checkpoint(run: Run, name: str, *rest: Any) -> Checkpoint:
        checkpoint = real(run, name, *rest)
        saved.append(name)
        return checkpoint

    monkeypatch.setattr(Run, "save_checkpoint", save_checkpoint)
    return saved


def test_checkpoints_within_epochs_change_nothing(
    uninterrupted_run: Run, records: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, saved = Run(str(tmp_path / "run")), record_saves(monkeypatch)
    train_local(configure_checkpoints(records, 5), run)
    assert_same(run, uninterrupted_run)
    # After steps 5, 10 and 15; epochs end with steps 6, 11 and 16.
    names = ["step_0000005", "epoch_00001", "step_0000010", "epoch_00002", "step_0000015"]
    assert saved == [*names, "epoch_00003"]


def test_the_last_step_of_a_validated_epoch_is_saved_once(records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    with pytest.raises(AbortError):
        train_local(configure_checkpoints(records, 6), run, kill_at(7))
    assert [c.name for c in run.checkpoints()] == ["epoch_00001"]


def test_the_info_of_a_checkpoint_within_an_epoch(killed_run: Run) -> None:
    latest = killed_run.latest_checkpoint()
    assert latest is not None
    assert (latest.name, latest.samples, latest.info.epochs) == ("step_0000010", 40, 1)
    assert not latest.is_validated
    assert latest.info.metrics["step"] == 10
    best = killed_run.best_checkpoint()
    assert best is not None
    assert best.name == "epoch_00001"
    assert [c.name for c in killed_run.checkpoints()] == [
        "epoch_00001",
        "step_0000008",
        "step_0000010",
    ]


def test_the_interval_of_checkpoints_may_change(killed_run: Run, records: str) -> None:
    train_local(configure_checkpoints(records, 0), killed_run)


# Resuming


@pytest.mark.timeout(300)
@settings(max_examples=5)
@given(stops=st.lists(st.integers(1, STEPS), min_size=1, max_size=2), steps=st.integers(0, 7))
def test_a_run_stopped_at_any_step_resumes_exactly(
    uninterrupted_run: Run,
    records: str,
    tmp_path_factory: pytest.TempPathFactory,
    stops: Any,
    steps: int,
) -> None:
    run = Run(str(tmp_path_factory.mktemp("stopped") / "run"))
    config = configure_checkpoints(records, steps)
    for step in sorted(stops):
        began = resolve_resume(config, run).spec.start
        with contextlib.suppress(StoppedError):
            train_local(config, run, request_stop_at(step))
        # A stop takes effect one step after the request, which is read after each step.
        expected = min(max(step + 1, began // BATCH_SIZE + 2), STEPS)
        latest = run.latest_checkpoint()
        assert latest is not None
        assert latest.samples == expected * BATCH_SIZE
    train_local(config, run)
    assert_same(run, uninterrupted_run)


@pytest.mark.parametrize(
    ("steps", "killed_in", "kept"), [(1, 5, 4), (3, 3, 0), (3, 5, 3), (4, 10, 8), (7, 16, 14)]
)
def test_a_run_killed_at_any_step_resumes_from_its_last_checkpoint(
    steps: int, killed_in: int, kept: int, uninterrupted_run: Run, records: str, tmp_path: Path
) -> None:
    run, config = Run(str(tmp_path / "run")), configure_checkpoints(records, steps)
    with pytest.raises(AbortError):
        train_local(config, run, kill_at(killed_in))
    assert resolve_resume(config, run).spec.start == kept * BATCH_SIZE
    train_local(config, run)
    assert_same(run, uninterrupted_run)


def test_a_kill_between_metrics_and_manifest_leaves_both_consistent(
    killed_run: Run, uninterrupted_run: Run, records: str
) -> None:
    """The save of step 10 wrote its files but no manifest, so the metrics are ahead."""
    assert metric_lines(killed_run)[-1]["step"] == 10
    storage.delete_file(f"{killed_run}/checkpoints/step_0000010/manifest.json")
    assert (
        resolve_resume(configure_checkpoints(records, 2), killed_run).spec.start == 8 * BATCH_SIZE
    )
    train_local(configure_checkpoints(records, 2), killed_run)
    assert_same(killed_run, uninterrupted_run)


def test_the_progress_is_resumed_too(killed_run: Run, uninterrupted_run: Run, records: str) -> None:
    seen: list[TrainingProgress] = []
    train_local(configure_checkpoints(records, 2), killed_run, Callbacks(on_step_end=seen.append))
    by_step = {
        line["step"]: line for line in metric_lines(uninterrupted_run) if line["kind"] == "step"
    }
    first = seen[0]
    assert (first.samples, first.num_validations) == (44, 1)
    best = uninterrupted_run.metrics()[EPOCH_END_SAMPLES[1] // BATCH_SIZE][
        "jaccard"
    ]  # the line after six steps
    assert (first.jaccard, first.best_jaccard) == (best, best)
    assert first.critic_loss == by_step[11]["critic_loss"]


LOSSES = ("critic_loss", "segmentor_loss", "dice_loss")


def step_losses(run: Run) -> dict[int, list[float]]:
    """The losses of each logged step."""
    lines = (line for line in run.metrics() if line["kind"] == "step")
    return {line["step"]: [line[name] for name in LOSSES] for line in lines}


def mean_of(losses: dict[int, list[float]], steps: range) -> list[float]:
    return [sum(values) / len(steps) for values in zip(*(losses[n] for n in steps), strict=True)]


def test_logged_losses_are_means_of_the_steps_and_the_same_after_a_resume(
    uninterrupted_run: Run, records: str, tmp_path: Path
) -> None:
    """Killed after step 10 of 16, within the epoch of steps 7 to 11 and the interval 9 to 12."""
    by_step = step_losses(uninterrupted_run)  # logs every step
    whole, resumed = (Run(str(tmp_path / name)) for name in ("whole", "resumed"))
    config = configure(records, training={"checkpoint_every_steps": 5, "log_every_steps": 4})
    train_local(config, whole)
    with pytest.raises(AbortError):
        train_local(config, resumed, kill_at(11))
    (within,) = (c for c in resumed.checkpoints() if not c.is_validated and c.samples == 40)
    seen: list[TrainingProgress] = []
    train_local(config, resumed, Callbacks(on_step_end=seen.append))

    assert step_losses(whole) == {
        step: pytest.approx(mean_of(by_step, range(step - 3, step + 1)), rel=1e-12)
        for step in (4, 8, 12, 16)
    }
    epochs = {
        line["step"]: [line[name] for name in LOSSES]
        for line in whole.metrics()
        if line["kind"] == "epoch"
    }
    assert epochs == {
        last: pytest.approx(mean_of(by_step, range(first, last + 1)), rel=1e-12)
        for first, last in ((1, 6), (7, 11), (12, 16))
    }
    found = [within.info.metrics[name] for name in LOSSES]
    assert found == pytest.approx(mean_of(by_step, range(7, 11)), rel=1e-12)
    assert metric_lines(resumed) == metric_lines(whole)  # to the last bit
    epoch_lines = [line for line in resumed.metrics() if line["kind"] == "epoch"]
    assert ["restore" in line["stage_seconds"] for line in epoch_lines] == [False, True, False]
    # The epoch's mean replaces that of the interval at its end.
    shown = [progress.critic_loss for progress in seen if progress.samples == 44]
    assert shown == [step_losses(whole)[8][0], epochs[11][0]]


def test_a_stop_at_the_end_of_an_epoch_without_validation_keeps_its_losses(
    records: str, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    config = configure(records, training={"validate_every_epochs": 3, "log_every_steps": 100})
    with pytest.raises(StoppedError):
        train_local(config, run, request_stop_at(5))  # so it stops after step 6, the epoch's last
    (line,) = run.metrics()
    (stopped,) = run.checkpoints()
    assert (line["kind"], line["step"], stopped.samples) == ("epoch", 6, 24)
    assert all(stopped.info.metrics[name] == line[name] for name in LOSSES)


# Corruption


def flip_middle_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def change_samples(content: bytes) -> bytes:
    assert content.count(b'"samples": 40') == 1
    return content.replace(b'"samples": 40', b'"samples": 36')


CORRUPTIONS: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flip_middle_byte,
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "no JSON": lambda content: b"<html>503</html>",
    "JSON of something else": lambda content: b'{"files": []}',
}


def corrupt(uri: str, corruption: Callable[[bytes], bytes]) -> None:
    storage.write_bytes(uri, corruption(storage.read_bytes(uri)))


@pytest.mark.parametrize(
    ("file", "how"),
    [(file, how) for file in FILES for how in ("flipped", "torn")]
    + [("manifest.json", how) for how in CORRUPTIONS if how != "flipped"],
)
def test_a_corrupted_latest_checkpoint_is_skipped_and_named(
    file: str,
    how: str,
    killed_run: Run,
    uninterrupted_run: Run,
    records: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = configure_checkpoints(records, 2)
    corrupt(f"{killed_run}/checkpoints/step_0000010/{file}", CORRUPTIONS[how])
    assert resolve_resume(config, killed_run).spec.start == 8 * BATCH_SIZE
    message = caplog.text
    assert f"{killed_run}: checkpoint step_0000010 is skipped: " in message
    assert file in message
    train_local(config, killed_run)
    assert_same(killed_run, uninterrupted_run)


def test_a_checkpoint_with_a_missing_file_is_skipped(
    killed_run: Run, records: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage.delete_file(f"{killed_run}/checkpoints/step_0000010/trainer.safetensors")
    assert (
        resolve_resume(configure_checkpoints(records, 2), killed_run).spec.start == 8 * BATCH_SIZE
    )
    assert "found no such file" in caplog.text


def test_a_changed_manifest_is_skipped(
    killed_run: Run, records: str, caplog: pytest.LogCaptureFixture
) -> None:
    corrupt(f"{killed_run}/checkpoints/step_0000010/manifest.json", change_samples)
    assert (
        resolve_resume(configure_checkpoints(records, 2), killed_run).spec.start == 8 * BATCH_SIZE
    )
    assert "step_0000010" in caplog.text


def test_skipped_checkpoints_are_deleted_at_the_next_save(killed_run: Run, records: str) -> None:
    corrupt(f"{killed_run}/checkpoints/step_0000010/manifest.json", CORRUPTIONS["torn"])
    storage.write_bytes(f"{killed_run}/checkpoints/step_0000009/half", b"")
    with pytest.raises(AbortError):
        train_local(
            configure_checkpoints(records, 1), killed_run, kill_at(10)
        )  # after the save of step 9
    folders = {n.split("/")[0] for n in storage.iter_names(f"{killed_run}/checkpoints", "")}
    assert folders == {"epoch_00001", "step_0000008", "step_0000009"}


def test_two_corrupted_checkpoints_fall_back_to_the_third(
    killed_run: Run, uninterrupted_run: Run, records: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("step_0000008", "step_0000010"):
        corrupt(f"{killed_run}/checkpoints/{name}/critic.safetensors", flip_middle_byte)
    assert (
        resolve_resume(configure_checkpoints(records, 2), killed_run).spec.start
        == EPOCH_END_SAMPLES[1]
    )
    message = caplog.text
    assert "step_0000008" in message
    assert "step_0000010" in message
    train_local(configure_checkpoints(records, 2), killed_run)
    assert_same(killed_run, uninterrupted_run)


def test_a_run_without_usable_checkpoints_is_not_restarted(killed_run: Run, records: str) -> None:
    before = killed_run.metrics()
    corrupt(f"{killed_run}/checkpoints/epoch_00001/trainer.safetensors", flip_middle_byte)
    corrupt(f"{killed_run}/checkpoints/step_0000008/manifest.json", CORRUPTIONS["torn"])
    storage.delete_file(f"{killed_run}/checkpoints/step_0000010/critic.safetensors")
    with pytest.raises(StorageError) as caught:
        train_local(configure_checkpoints(records, 2), killed_run)
    message = str(caught.value)
    assert message.startswith(f"{killed_run}: no checkpoint is usable (")
    for word in (
        "epoch_00001: trainer.safetensors: expected sha256",
        "step_0000008: ",
        "no such file",
    ):
        assert word in message
    assert killed_run.metrics() == before


def without_progress(info: dict[str, Any]) -> None:
    del info["progress"]


def with_old_progress_key(info: dict[str, Any]) -> None:
    info["progress"]["validated"] = info["progress"].pop("num_validations")


def with_old_config_key(info: dict[str, Any]) -> None:
    info["config"]["loss"]["reading"] = info["config"]["loss"].pop("reduction")


@pytest.mark.parametrize("change", [without_progress, with_old_progress_key, with_old_config_key])
def test_a_checkpoint_of_an_older_version_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], None], killed_run: Run, records: str
) -> None:
    def as_older_version(content: bytes) -> bytes:
        manifest = json.loads(content)
        del manifest["info_sha256"]
        change(manifest["info"])
        return json.dumps(manifest).encode()

    for name in ("epoch_00001", "step_0000008", "step_0000010"):
        corrupt(f"{killed_run}/checkpoints/{name}/manifest.json", as_older_version)
    with pytest.raises(StorageError) as caught:
        resolve_resume(configure_checkpoints(records, 2), killed_run)
    message = str(caught.value)
    assert "epoch_00001: written by an older segan version; cannot be resumed" in message
    assert "\n" not in message


def test_the_resume_point_needs_no_torch() -> None:
    """The process of the run's coordinator unpickles one and would take seconds for torch."""
    program = "import sys, segan.training.resume; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_incomplete_first_checkpoint_is_ignored(records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    storage.write_bytes(f"{run}/checkpoints/step_0000002/critic.safetensors", b"half")
    assert resolve_resume(configure_checkpoints(records, 2), run).spec.start == 0


def test_a_checkpoint_that_vanishes_is_passed_over_for_a_newer_one(
    records: str, killed_run: Run
) -> None:
    """Another process deletes the listed checkpoints and saves a newer one."""

    class BusyRun(Run):
        num_scans = 0

        def scan_checkpoints(self) -> tuple[list[Checkpoint], dict[str, str]]:
            found = super().scan_checkpoints()
            self.num_scans += 1
            if self.num_scans == 1:
                latest = found[0][-1]
                files = {name: latest.read(name) for name in latest.files}
                info = dataclasses.replace(latest.info, samples=latest.samples + BATCH_SIZE)
                self.save_checkpoint("step_0000011", files, info)
                for checkpoint in found[0]:
                    storage.delete_folder(checkpoint.uri)
            return found

    run, config = BusyRun(killed_run.uri), configure_checkpoints(records, 2)
    before = killed_run.latest_checkpoint()
    assert before is not None
    assert resolve_resume(config, run).spec.start == before.samples + BATCH_SIZE
    assert run.num_scans == 2


# Records that change


def test_a_run_goes_on_with_the_records_that_it_began_with(
    records: str, uninterrupted_run: Run, tmp_path: Path
) -> None:
    """`records` has the folds of another ingest in the middle of the run."""
    changing, run = str(shutil.copytree(records, tmp_path / "records")), Run(str(tmp_path / "run"))
    config = configure(changing)
    with pytest.raises(StoppedError):
        train_local(config, run, request_stop_at(7))
    archive = open_archive(str(Path(records).parent / "archive"))
    options = IngestOptions(FRAME, rows_per_shard=8)
    ingest(k_fold_split(archive, folds=3, fold=1, seed=0), changing, options, local_executor(1))
    assert read_manifest(changing).num_rows("train") < ROWS
    train_local(config, run)
    assert_same(run, uninterrupted_run)
    new = resolve_resume(config, Run(str(tmp_path / "new")))
    assert new.spec.sampler.manifest == read_manifest(changing)
    study = resolve_resume(config, Run(str(tmp_path / "new")), fingerprint=run.fingerprint())
    assert study.spec.sampler.manifest == read_manifest(records)


def test_a_run_does_not_go_on_with_other_records(records: str, tmp_path: Path) -> None:
    changing, run = str(shutil.copytree(records, tmp_path / "records")), Run(str(tmp_path / "run"))
    with pytest.raises(StoppedError):
        train_local(configure(changing), run, request_stop_at(2))
    manifest = storage.read_json(f"{changing}/manifest.json")
    storage.write_json(f"{changing}/manifest.json", manifest | {"fingerprint": "another"})
    with pytest.raises(
        UsageError,
        match=f"^{changing}: data fingerprint is 'another', expected '{manifest['fingerprint']}'",
    ):
        train_local(configure(changing), run)


# All kinds of state that a training can have

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "averaged": {"training": {"ema_decay": 0.9}, "optimizer": {"warmup_fraction": 0.3}},
    "spectral norm": {"network": {"spectral_norm": True}, "optimizer": {"weight_clip": None}},
    "no critic": {"loss": {"critic": "none", "cross_entropy_weight": 1.0}},
    "scalar critic": {"loss": {"critic": "scalar"}, "augment": {"resize_probability": 0.5}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_stopped_variant_resumes_exactly(name: str, records: str, tmp_path: Path) -> None:
    config = configure(records, **VARIANTS[name])
    whole, stopped = Run(str(tmp_path / "whole")), Run(str(tmp_path / "stopped"))
    train_local(config, whole)
    with pytest.raises(StoppedError):
        train_local(config, stopped, request_stop_at(7))
    train_local(config, stopped)
    assert_same(stopped, whole)


def test_the_saved_segmentor_is_the_ema(records: str, tmp_path: Path) -> None:
    plain, averaged = Run(str(tmp_path / "plain")), Run(str(tmp_path / "averaged"))
    train_local(configure(records), plain)
    train_local(configure(records, training={"ema_decay": 0.9}), averaged)
    own, mean = load_weights(plain), load_weights(averaged)
    assert not torch.equal(own["out.weight"], mean["out.weight"])
    latest = averaged.latest_checkpoint()
    assert latest is not None
    trainer = load_tensors(latest.read("trainer.safetensors"))
    # S itself is trained as without an EMA.
    assert all(torch.equal(trainer[f"segmentor.{name}"], own[name]) for name in own)
    assert trainer["ema_num_updates"] == STEPS


# Signals

LONG_RUN_OVERRIDES = (
    "training.epochs=400",
    "training.checkpoint_every_steps=3",
    "training.log_every_steps=1",
)


@contextlib.contextmanager
def cli_training(records: str, run: Run) -> Any:
    """`segan train --local` in its own process, after its first checkpoint."""
    overrides = ["network.width=2", "augment.crop=64", "training.batch_size=4"]
    run_overrides = [f"data.records={records}", "cluster.threads_per_worker=1", *LONG_RUN_OVERRIDES]
    command = [
        sys.executable,
        "-m",
        "segan",
        "train",
        run.uri,
        "--local",
        *overrides,
        *run_overrides,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 90
            while run.latest_checkpoint() is None:
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline, "no checkpoint came"
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_signal_stops_a_training_gracefully(
    number: int, code: int, records: str, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    with cli_training(records, run) as process:
        process.send_signal(number)
        message = process.communicate()[1]
    latest = run.latest_checkpoint()
    assert latest is not None
    step = latest.samples // BATCH_SIZE
    assert process.returncode == code
    assert message.splitlines()[-1] == (
        f"segan: {run}: stopped after step {step}, with a checkpoint; "
        "run the same command to resume"
    )
    assert [line["step"] for line in run.metrics() if line["kind"] == "step"] == [
        *range(1, step + 1)
    ]


# The order of the images


def test_a_run_keeps_the_lanes_that_it_began_with(records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    config = configure(records, training={"batch_size": 2}, cluster={"workers": 2})
    begun = resolve_resume(config, run)
    assert begun.spec.lanes == 2
    create_or_resume(config, run, begun)
    assert resolve_resume(config, run).with_world_size(1).spec.lanes == 2  # elastic
    description = dict(run.description())
    assert description["identity"].pop(LANES_KEY) == 2
    storage.write_json(f"{run}/{RUN_FILE}", description)  # as before there were lanes
    older = resolve_resume(config, run)
    assert older.spec.lanes == 1
    create_or_resume(config, run, older)
    for wrong in (0, -1, "2", 1.5, 1 << 40):
        description["identity"][LANES_KEY] = wrong
        storage.write_json(f"{run}/{RUN_FILE}", description)
        with pytest.raises(CorruptedError, match=r"run\.json: stream\.lanes: expected a number"):
            resolve_resume(config, run)

"""What a run writes for TensorBoard, and that a flush writes only what is new."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from segan import storage
from segan.runs.run import Run
from segan.training.metrics import StepMetrics
from segan.training.metrics_log import MetricsLog, write_hyperparameters


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files, on a disk with room for a few events."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a disk")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_for_temporary_files_ends_no_training(
    full_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path / "run"))
    log = MetricsLog(run, 0, 0)
    for step in range(1, 400):
        log.write(StepMetrics(step=step, epoch=1, learning_rate=0.1), step)
        log.store(log.take(), durable=False)
    log.close()
    assert [line["step"] for line in run.metrics()] == list(range(1, 400))
    (message,) = caplog.messages
    assert message.startswith(f"{full_disk}: No space left on device; the training goes on")


def test_a_trials_point_is_in_tensorboards_hparams(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "trial"))
    point = {"optimizer.learning_rate": 0.002, "logistic.final_k": 0.3}
    write_hyperparameters(run, point, {"jaccard": 0.625})
    events = EventAccumulator(f"{run}/tensorboard").Reload()
    started = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(started).session_start_info.hparams
    assert {name: value.number_value for name, value in found.items()} == point
    assert [scalar.value for scalar in events.Scalars("jaccard")] == [0.625]


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return Run(f"{root}/run")


def write_steps(log: MetricsLog, steps: range) -> None:
    for step in steps:
        log.write(StepMetrics(step=step, epoch=1, critic_loss=float(step)), 10 * step)
        log.store(log.take(), durable=False)


def tensorboard_samples(run: Run, folder: Path) -> list[int]:
    """The samples at which TensorBoard finds steps, in copies of the files."""
    for file in storage.list_files(f"{run}/tensorboard"):
        content = storage.read_bytes(f"{run}/tensorboard/{file.name}")
        storage.write_bytes(str(folder / file.name), content)
    events = EventAccumulator(str(folder)).Reload()
    return [event.step for event in events.Scalars("step/critic_loss")]


def test_each_flush_writes_as_much_as_the_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is: bytes that do not grow with what was written before."""
    log, written = MetricsLog(run, 0, 0), list[int]()
    for name in ("write_bytes", "append_bytes"):

        def count(
            uri: str,
            content: bytes,
            *rest: object,
            real: object = getattr(storage, name),
            **options: object,
        ) -> None:
            written.append(len(content))
            real(uri, content, *rest, **options)  # type: ignore[operator]

        monkeypatch.setattr(storage, name, count)
    write_steps(log, range(1000, 1100))
    log.close()
    assert len(written) == 200
    assert len(set(written[2:])) == 2, "lines and events, after the head of the first event file"


def test_tensorboard_reads_a_stopped_and_resumed_run(run: Run, tmp_path: Path) -> None:
    log = MetricsLog(run, 0, 0)
    write_steps(log, range(1, 6))
    log.close()  # killed
    assert tensorboard_samples(run, tmp_path / "killed") == [10, 20, 30, 40, 50]
    log = MetricsLog(run, 30, 3)
    write_steps(log, range(4, 8))
    log.merge()
    log.close()
    assert tensorboard_samples(run, tmp_path / "ended") == [10, 20, 30, 40, 50, 60, 70]
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6, 7]


def test_missing_metrics_are_named_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    log = MetricsLog(run, 0, 0)
    write_steps(log, range(1, 6))
    log.close()
    MetricsLog(run, 50, log.num_lines).close()
    assert not caplog.messages
    storage.delete_folder(f"{run}/metrics")
    log = MetricsLog(run, 50, log.num_lines)
    assert caplog.messages == [
        f"{run}: expected 5 lines of metrics up to the checkpoint, found 0; the curves have a gap, "
        "and the training goes on"
    ]
    write_steps(log, range(6, 8))
    log.close()
    assert log.num_lines == 7
    assert [line["step"] for line in run.metrics()] == [6, 7]

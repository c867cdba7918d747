"""What a run writes for TensorBoard."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

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
    log = MetricsLog(run, 0)
    for step in range(1, 400):
        log.write(StepMetrics(step=step, epoch=1, learning_rate=0.1), step)
        log.flush()
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

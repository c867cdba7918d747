"""Checkpoints are written in the background, one at a time, of the moment at which they began."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from segan import storage
from segan.errors import CorruptedError, StoppedError, StorageError
from segan.runs.checkpoint import Checkpoint, CheckpointInfo
from segan.runs.run import Run
from segan.training.background import BackgroundJob
from segan.training.launch import train_local
from segan.training.tensor_file import TensorFile, TensorSpec, load_tensors
from segan.training.trainer import Callbacks, TrainingProgress
from tests.training.helpers import BATCH_SIZE, STEPS, configure, metric_lines, same_weights

TIMEOUT_S = 60.0  # of a wait that only a fault makes long


class SlowStore:
    """Holds each checkpoint's first file back until `release`; records what happens, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.events: list[str] = []
        self._begun, self._released = threading.Event(), threading.Event()
        self._real = storage.write_buffers
        monkeypatch.setattr(storage, "write_buffers", self.write_buffers)
        real_save = Run.save_checkpoint

        def save_checkpoint(run: Run, name: str, *rest: Any) -> Checkpoint:
            self.events.append(f"begin {name}")
            self._begun.set()
            checkpoint = real_save(run, name, *rest)
            self.events.append(f"end {name}")
            return checkpoint

        monkeypatch.setattr(Run, "save_checkpoint", save_checkpoint)

    def write_buffers(self, uri: str, buffers: Sequence[memoryview]) -> tuple[str, int]:
        if uri.endswith("segmentor.safetensors"):
            assert self._released.wait(TIMEOUT_S), "the training waited for the store"
        return self._real(uri, buffers)

    def release(self) -> None:
        self._released.set()

    def callbacks(self, release_at: int, stop_at: int = STEPS) -> Callbacks:
        """Records each step, and lets the store go on at one of them."""

        def on_step_end(progress: TrainingProgress) -> None:
            step = progress.samples // BATCH_SIZE
            if step == release_at:
                assert self._begun.wait(TIMEOUT_S)
            self.events.append(f"step {step}")
            if step == release_at:
                self.release()

        return Callbacks(on_step_end, should_stop=lambda: f"step {stop_at}" in self.events)

    def index(self, event: str) -> int:
        return self.events.index(event)


@pytest.fixture
def slow_store(monkeypatch: pytest.MonkeyPatch) -> SlowStore:
    return SlowStore(monkeypatch)


def test_the_training_goes_on_while_a_checkpoint_is_written(
    slow_store: SlowStore, records: str, tmp_path: Path
) -> None:
    """Epochs end with steps 6, 11 and 16. The store lets the first go on in step 10."""
    run, undisturbed = Run(str(tmp_path / "run")), Run(str(tmp_path / "undisturbed"))
    train_local(configure(records), run, slow_store.callbacks(release_at=10))
    order = ["step 6", "begin epoch_00001", "step 10", "end epoch_00001", "begin epoch_00002"]
    assert sorted(order, key=slow_store.index) == order
    train_local(configure(records), undisturbed)
    assert same_weights(run, undisturbed)
    assert metric_lines(run) == metric_lines(undisturbed)
    # What steps 7 to 10 changed is not in the checkpoint that was written meanwhile.
    assert [c.files for c in run.checkpoints()] == [c.files for c in undisturbed.checkpoints()]


def test_the_next_checkpoint_waits_for_the_one_before_and_says_so(
    slow_store: SlowStore, records: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path / "run"))
    config = configure(records, training={"checkpoint_every_steps": 2})

    class ReleaseWhenItIsSaid(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            slow_store.events.append("said")
            slow_store.release()

    logger, handler = logging.getLogger("segan.training.checkpointing"), ReleaseWhenItIsSaid()
    logger.addHandler(handler)
    try:
        train_local(config, run, slow_store.callbacks(release_at=STEPS + 1))
    finally:
        logger.removeHandler(handler)
    said = [record.message for record in caplog.records if record.name == logger.name]
    assert said[0] == f"{run}: the training waits with step_0000004 until step_0000002 is written"
    order = ["step 4", "said", "end step_0000002", "begin step_0000004", "end step_0000004"]
    assert sorted(order, key=slow_store.index) == order
    assert slow_store.index("end step_0000002") < slow_store.index("step 5")


def test_a_stop_waits_until_its_checkpoint_is_written(
    slow_store: SlowStore, records: str, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    timer = threading.Timer(0.5, slow_store.release)  # the loop has ended long before
    timer.start()
    with pytest.raises(StoppedError, match="stopped after step 3, with a checkpoint"):
        train_local(configure(records), run, slow_store.callbacks(STEPS + 1, stop_at=2))
    timer.join()
    assert slow_store.events[-2:] == ["begin step_0000003", "end step_0000003"]
    assert [c.name for c in run.checkpoints()] == ["step_0000003"]


def test_an_error_of_the_training_waits_for_the_checkpoint(
    slow_store: SlowStore, records: str, tmp_path: Path
) -> None:
    class AbortError(Exception):
        pass

    run, callbacks = Run(str(tmp_path / "run")), slow_store.callbacks(release_at=8)

    def abort_at_8(progress: TrainingProgress) -> None:
        callbacks.on_step_end(progress)
        if progress.samples == 8 * BATCH_SIZE:
            raise AbortError

    with pytest.raises(AbortError):
        train_local(configure(records), run, Callbacks(abort_at_8))
    assert [c.name for c in run.checkpoints()] == ["epoch_00001"]


def test_an_error_of_the_store_ends_the_training_with_its_reason(
    records: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, undisturbed, steps = Run(str(tmp_path / "run")), Run(str(tmp_path / "whole")), [0]
    failed = threading.Event()

    def fail(uri: str, _: object) -> None:
        failed.set()
        raise StorageError(f"{uri}: No space left on device; free some space")

    def on_step_end(progress: TrainingProgress) -> None:
        steps.append(progress.samples // BATCH_SIZE)
        if steps[-1] == 7:
            assert failed.wait(TIMEOUT_S)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_buffers", fail)
        with pytest.raises(StorageError, match=r"segmentor\.safetensors: No space left on device"):
            train_local(configure(records), run, Callbacks(on_step_end))
    assert 7 <= steps[-1] < 11, "it ends before the next checkpoint"
    assert run.checkpoints() == []
    train_local(configure(records), run)
    train_local(configure(records), undisturbed)
    assert same_weights(run, undisturbed)
    assert metric_lines(run) == metric_lines(undisturbed)


def test_a_jobs_error_is_raised_once() -> None:
    def fail() -> None:
        raise StorageError("full")

    job = BackgroundJob()
    job.start("first", fail)
    with pytest.raises(StorageError, match="full"):
        job.wait()
    job.raise_error()
    job.start("second", lambda: None)
    job.wait()
    assert (job.name, job.is_running) == ("second", False)


# The files

TENSORS = {
    "weight": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "count": torch.tensor(7),
    "flag": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
}


def content_of(tensors: dict[str, torch.Tensor]) -> bytes:
    file = TensorFile({name: TensorSpec.of(t) for name, t in tensors.items()}, pin=False)
    file.fill(tensors)
    return b"".join(file.buffers())


def write(folder: Path, content: bytes) -> Checkpoint:
    info = CheckpointInfo(epochs=0, samples=0, metrics={}, config={})
    return Run(str(folder)).save_checkpoint("epoch_00001", {"file": content}, info)


def places() -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, 1) for name, tensor in TENSORS.items()}


def test_the_library_reads_a_tensor_file() -> None:
    found = load_bytes(content_of(TENSORS))
    assert {n: (t.dtype, t.shape) for n, t in found.items()} == {
        n: (t.dtype, t.shape) for n, t in TENSORS.items()
    }
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "encode", [content_of, lambda t: save_bytes({n: x.contiguous() for n, x in t.items()})]
)
def test_tensors_are_read_to_their_places(
    encode: Callable[[dict[str, torch.Tensor]], bytes], tmp_path: Path
) -> None:
    found = places()
    before = {name: tensor.data_ptr() for name, tensor in found.items()}
    load_tensors(write(tmp_path, encode(TENSORS)), "file", lambda _: found)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert {name: tensor.data_ptr() for name, tensor in found.items()} == before
    assert found["weight"].stride() == TENSORS["weight"].stride()


def test_a_filled_file_holds_the_last_tensors() -> None:
    file = TensorFile({"a": TensorSpec(torch.float32, (2,))}, pin=False)
    for value in (1.0, 2.0):
        file.fill({"a": torch.full((2,), value)})
    assert load_bytes(b"".join(file.buffers()))["a"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("position", [0, 8, 20, -1])
def test_a_damaged_file_fails_its_checksum(position: int, tmp_path: Path) -> None:
    checkpoint = write(tmp_path, content_of(TENSORS))
    path = Path(checkpoint.uri) / "file"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptedError, match="do not match the manifest's checksum"):
        load_tensors(checkpoint, "file", lambda _: places())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"\xff" * 100,
        content_of(TENSORS)[:-1],
        content_of(TENSORS) + b"\0",
        (2).to_bytes(8, "little") + b"[]",
        (47).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":',
        (57).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}   '
        + bytes(4),
    ],
)
def test_what_is_no_tensor_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CorruptedError, match="file: ") as caught:
        load_tensors(write(tmp_path, content), "file", lambda _: places())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("flag"), "expected flag as .*, found None"),
        (lambda t: t.update(more=torch.zeros(1)), "expected more as None, found"),
        (lambda t: t.update(weight=torch.zeros(3)), r"weight as .*\(2, 3, 2, 2\).*found .*\(3,\)"),
    ],
)
def test_other_tensors_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], message: str, tmp_path: Path
) -> None:
    tensors = dict(TENSORS)
    change(tensors)
    with pytest.raises(CorruptedError, match=message):
        load_tensors(write(tmp_path, content_of(tensors)), "file", lambda _: places())

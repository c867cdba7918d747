"""From a configuration and a place in storage to a training that is ready to go."""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from segan import storage
from segan.config import Config
from segan.data.records.format import Manifest, read_manifest, read_samples
from segan.data.stream.batches import StreamSpec, local_batches
from segan.data.stream.sampler import DeterministicSampler
from segan.errors import NonFiniteError, StoppedError, StorageError, UsageError
from segan.runs.ablation import OnValidation
from segan.runs.checkpoint import Checkpoint
from segan.runs.run import Run
from segan.runs.transfer import verify_checkpoint
from segan.runs.trial import Trial, TrialStatus
from segan.storage.lease import hold_lease
from segan.training.distributed import rank, single_process_group, world_size
from segan.training.trainer import Callbacks, Trainer

logger = logging.getLogger(__name__)


def check_config(config: Config, run: Run) -> StreamSpec:
    """The whole run's rows, if there is nothing against it.

    Reads no image and no checkpoint, so what cannot work is said before any long work.

    Raises:
        UsageError: the configuration does not fit the records.
        StorageError: the records or the run cannot be read.
    """
    storage.check_access(run.uri)
    manifest = read_manifest(config.data.records)
    _check_records(config, manifest)
    return _stream_spec(config, manifest, 0)


def resolve_resume(
    config: Config, run: Run, warn: Callable[[str], None] = logger.warning
) -> StreamSpec:
    """The rows that are left of a run, from its newest whole checkpoint or from the first.

    Reads that checkpoint through, so it is for one process to make, and for the ranks to take.

    Args:
        tell: is given a line for each checkpoint that is passed over.

    Raises:
        UsageError: the configuration does not fit the records.
        StorageError: storage cannot be read, or there are checkpoints and none is whole.
    """
    full_spec = check_config(config, run)
    checkpoint = find_resume_checkpoint(run, warn)
    if checkpoint is None:
        return full_spec
    spec = _stream_spec(config, full_spec.sampler.manifest, checkpoint.samples)
    return dataclasses.replace(spec, checkpoint=checkpoint)


def find_resume_checkpoint(run: Run, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose manifest and files hold; None where the run has none yet.

    Raises:
        StorageError: there are some, and none holds.
    """
    complete, damaged = run.scan_checkpoints()
    for checkpoint in reversed(complete):
        error = "; ".join(file.error for file in verify_checkpoint(checkpoint) if file.error)
        if not error and checkpoint.info.progress is None:
            error = "an older segan's, which this one cannot go on from"
        if not error:
            break
        damaged[checkpoint.name] = error
    else:
        if damaged:
            raise StorageError(
                f"{run}: none of its checkpoints is whole ("
                + ", ".join(f"{name}: {wrong}" for name, wrong in damaged.items())
                + "); bring one back from a copy, or begin again under another name"
            )
        return None
    for name, error in damaged.items():
        warn(f"{run}: checkpoint {name} is not whole and passed over: {error}")
    return checkpoint


def _stream_spec(config: Config, manifest: Manifest, start: int) -> StreamSpec:
    return StreamSpec(
        config.data.records,
        DeterministicSampler(manifest, config.data.train, config.training.seed),
        config.training.epochs,
        start,
        config.training.batch_size,
        config.cluster.workers,
    )


def build_trainer(
    config: Config, run: Run, spec: StreamSpec, callbacks: Callbacks, runs_per_node: int = 1
) -> Trainer:
    """The loop with networks in the state that the plan starts from; a process group must be up.

    Args:
        runs_here: how many trainings share the node's cores.
    """
    torch.set_num_threads(_num_threads(config, runs_per_node))
    manifest, split = spec.sampler.manifest, config.data.validation
    frames = read_samples(spec.records, manifest, split, rank(), world_size())
    return Trainer(config, run, spec, frames, _device(config), callbacks)


def stopped_error(run: Run) -> StoppedError:
    """What to say of a run that was told to stop and did."""
    latest = run.latest_checkpoint()
    assert latest is not None, "a run that stops in order leaves a checkpoint"
    step = latest.info.metrics["step"]
    return StoppedError(
        f"{run}: stopped after step {step}, with a checkpoint; the same command goes on from there"
    )


def train_local(config: Config, run: Run, callbacks: Callbacks | None = None) -> None:
    """A whole training in this process, where a breakpoint stops it.

    Raises:
        UsageError: more than one worker is asked for, or another process trains this run.
        StoppedError: a watcher wished it to stop.
    """
    with hold_lease(run.uri):
        _train_local(config, run, callbacks)


def _train_local(config: Config, run: Run, callbacks: Callbacks | None) -> None:
    if config.cluster.workers != 1:
        raise UsageError(
            f"cluster.workers {config.cluster.workers}: --local trains with 1, in this process"
        )
    spec = resolve_resume(config, run)
    run.create_or_resume(config, spec.sampler.manifest.fingerprint)
    if spec.is_exhausted:
        return
    with single_process_group():
        record_hardware(run)
        trainer = build_trainer(config, run, spec, callbacks or Callbacks())
        trainer.train(local_batches(spec))
    if trainer.stopped:
        raise stopped_error(run)


def _check_records(config: Config, manifest: Manifest) -> None:
    side, frame = config.augment.crop, min(manifest.height, manifest.width)
    if side > frame:
        raise UsageError(
            f"augment.crop {side}: the records' frames are {manifest.width} x {manifest.height} "
            f"pixels; use a crop of at most {frame}, or ingest at a larger size"
        )
    if config.network.classes != manifest.classes:
        raise UsageError(
            f"network.classes {config.network.classes}: the records' masks have {manifest.classes}"
        )
    for split in (config.data.train, config.data.validation):
        if manifest.num_rows(split) == 0:
            raise UsageError(f"split {split!r}: the records have no image in it")


def _device(config: Config) -> torch.device:
    if torch.cuda.is_available() and config.cluster.gpus_per_worker > 0:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def record_hardware(run: Run) -> None:
    """Adds to run.json how the workers lie and what rank 0 sees of its machine."""
    if rank() > 0:
        return
    workers = f"{world_size()} workers, {_local_world_size()} on a node of "
    machine = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        machine = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    workers_text = workers if world_size() > 1 else ""
    run.record_hardware(f"{workers_text}{machine}, {os.cpu_count()} CPU cores")


def _local_world_size() -> int:
    """Workers of this training on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _num_threads(config: Config, runs_per_node: int) -> int:
    if config.cluster.threads_per_worker:
        return config.cluster.threads_per_worker
    return max(1, (os.cpu_count() or 1) // (_local_world_size() * runs_per_node))


def train_all_local(
    config: Config,
    trials: list[Trial],
    on_validation: OnValidation,
    should_stop: Callable[[], bool],
) -> None:
    """Trains what is not over yet in this process, one after another.

    Args:
        tell: is given each validation: the trial's name, its metrics, and that it goes on.
        stop: whether somebody wishes an end.

    Raises:
        StoppedError: the wish was followed; the trial under way has a checkpoint.
    """
    for trial in trials:
        if trial.result().has_ended:
            continue

        def report(metrics: dict[str, Any], name: str = trial.name) -> bool:
            on_validation(name, metrics, True)
            return True

        started_at, status, reason = time.monotonic(), TrialStatus.FINISHED, ""
        try:
            train_local(
                trial.build_config(config),
                trial.run,
                Callbacks(on_validation_end=report, should_stop=should_stop),
            )
        except NonFiniteError as error:
            status, reason = TrialStatus.DIVERGED, str(error)
        trial.mark_done(status, time.monotonic() - started_at, reason)

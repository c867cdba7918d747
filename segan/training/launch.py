"""Building a trainer, and trainings in this process."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import torch

from segan.config import Config
from segan.data.records.frames import FrameShare
from segan.data.stream.batches import local_batches
from segan.errors import NonFiniteError, StoppedError, StorageError
from segan.runs.ablation import OnValidation
from segan.runs.run import Run
from segan.runs.trial import Trial, TrialStatus
from segan.storage.lease import current_fence, hold_lease
from segan.training.device import (
    announce_device,
    can_compile,
    device_record,
    has_gpu,
    resolve_local_device,
    resolve_performance,
    torch_device,
)
from segan.training.distributed import rank, world_size
from segan.training.local_ranks import local_ranks
from segan.training.metrics import EpochMetrics
from segan.training.resume import (
    ResumePoint,
    announce_initial_weights,
    create_or_resume,
    resolve_resume,
)
from segan.training.step import SegAN
from segan.training.trainer import BuildModel, Callbacks, Trainer
from segan.utils.memory import keep_freed_memory

CPU = torch.device("cpu")


def build_trainer(
    config: Config,
    run: Run,
    resume_point: ResumePoint,
    callbacks: Callbacks,
    device: torch.device = CPU,
    runs_per_node: int = 1,
    num_profiled_steps: int = 0,
    build_model: BuildModel = SegAN,
) -> Trainer:
    """Builds the trainer of this rank, with the state of the resume point's checkpoint.

    A process group must be initialised.

    Args:
        device: of the networks.
        runs_per_node: trainings that share the node's cores.
        num_profiled_steps: see `segan.training.profile`.
        build_model: returns the networks with their optimisers.
    """
    torch.set_num_threads(_num_threads(config, runs_per_node))
    keep_freed_memory()
    spec = resume_point.spec
    validation = FrameShare(
        spec.records, spec.sampler.manifest, config.data.validation, rank(), world_size()
    )
    return Trainer(
        config, run, resume_point, validation, device, callbacks, num_profiled_steps, build_model
    )


def stopped_error(run: Run) -> StoppedError:
    """Returns the error that reports a stopped run and its checkpoint.

    Raises:
        StorageError: the run has no checkpoint.
    """
    latest = run.latest_checkpoint()
    if latest is None:
        raise StorageError(f"{run}: stopped, but its checkpoint is missing from storage")
    step = latest.info.metrics["step"]
    return StoppedError(
        f"{run}: stopped after step {step}, with a checkpoint; run the same command to resume"
    )


def train_local(
    config: Config,
    run: Run,
    callbacks: Callbacks | None = None,
    fingerprint: str | None = None,
    num_profiled_steps: int = 0,
) -> None:
    """Trains a run to its end in this process, where a debugger can stop it.

    With several workers, this process is rank 0 and the others are processes of this machine.

    Args:
        fingerprint: of the records of a new run; None for the newest.
        num_profiled_steps: see `segan.training.profile`.

    Raises:
        UsageError: there are fewer GPUs than workers, or another process trains this run.
        StoppedError: `callbacks.should_stop` returned True.
        NonFiniteError: a loss or gradient is not finite.
    """
    with hold_lease(run.uri):
        run = Run(run.uri, current_fence(run.uri))
        _train_local(config, run, callbacks or Callbacks(), fingerprint, num_profiled_steps)


def _train_local(
    config: Config,
    run: Run,
    callbacks: Callbacks,
    fingerprint: str | None,
    num_profiled_steps: int,
) -> None:
    resume_point = resolve_resume(config, run, fingerprint=fingerprint)
    spec, cluster = resume_point.spec, resolve_local_device(config.cluster)
    config = resolve_performance(config, cluster.device, run.recorded_identity())
    create_or_resume(config, run, resume_point)
    if resume_point.is_finished:
        return
    performance = config.performance.resolve(cluster.device, can_compile())
    announce_device(cluster, performance, has_gpu())
    announce_initial_weights(resume_point)
    rank_args = config, run, resume_point, cluster.device, num_profiled_steps
    with local_ranks(spec.world_size, _train_rank, *rank_args):
        stopped = _train_rank(*rank_args, callbacks)
    if stopped:
        raise stopped_error(run)


def _train_rank(
    config: Config,
    run: Run,
    resume_point: ResumePoint,
    device_name: str,
    num_profiled_steps: int,
    callbacks: Callbacks | None = None,
) -> bool:
    """Trains this rank; returns whether the training was stopped before its end."""
    device = torch_device(device_name, rank())
    record_hardware(config, run, device)
    trainer = build_trainer(
        config,
        run,
        resume_point,
        callbacks or Callbacks(),
        device,
        num_profiled_steps=num_profiled_steps,
    )
    trainer.train(local_batches(resume_point.spec, rank()))
    return trainer.stopped


def train_all_local(
    config: Config,
    trials: list[Trial],
    on_validation: OnValidation,
    should_stop: Callable[[], bool],
    fingerprint: str | None = None,
) -> None:
    """Trains the unfinished trials of a study in this process, one after another.

    Args:
        on_validation: receives the trial's name and its metrics after each validation, and True,
            since the trial continues.
        should_stop: says whether to stop after the current step.
        fingerprint: of the study's records.

    Raises:
        StoppedError: `should_stop` returned True; the current trial has a checkpoint.
    """
    for trial in trials:
        if trial.result().has_ended:
            continue

        def on_validation_end(metrics: EpochMetrics, name: str = trial.name) -> bool:
            on_validation(name, metrics.to_dict(), True)
            return True

        callbacks = Callbacks(on_validation_end=on_validation_end, should_stop=should_stop)
        started_at, status, reason = time.monotonic(), TrialStatus.FINISHED, ""
        try:
            train_local(trial.build_config(config), trial.run, callbacks, fingerprint)
        except NonFiniteError as error:
            status, reason = TrialStatus.DIVERGED, str(error)
        trial.mark_done(status, time.monotonic() - started_at, reason)


def record_hardware(config: Config, run: Run, device: torch.device) -> None:
    """Adds the number of workers, rank 0's hardware and its device to run.json.

    Other ranks do nothing.
    """
    if rank() > 0:
        return
    hardware = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        hardware = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    if world_size() > 1:
        hardware = f"{world_size()} workers, {_local_world_size()} on a node of {hardware}"
    performance = config.performance.resolve(device.type, can_compile())
    run.record_hardware(
        f"{hardware}, {os.cpu_count()} CPU cores", device_record(performance, device)
    )


def _local_world_size() -> int:
    """Returns the number of this training's workers on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _num_threads(config: Config, runs_per_node: int) -> int:
    if config.cluster.threads_per_worker:
        return config.cluster.threads_per_worker
    return max(1, (os.cpu_count() or 1) // (_local_world_size() * runs_per_node))

"""One training as a Ray Train job.

ray job submit --working-dir . -- python -m ray_jobs.train --config ray_jobs/configs/paper.yaml
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from ray_jobs.cluster.capacity import max_concurrent_runs
from ray_jobs.cluster.connect import preserve_sigint_handler, unwrap_user_error
from ray_jobs.training.coordinator import monitor_run, start_coordinator
from ray_jobs.training.elastic import NodeLossCallback, elastic_shortfall
from ray_jobs.training.stream import StreamDataConfig
from ray_jobs.training.worker import ResumingDataset, WorkerResult, train_loop_per_worker
from segan import storage
from segan.config import Config
from segan.errors import UsageError
from segan.runs.run import Run
from segan.storage.lease import hold_lease
from segan.training.launch import resolve_resume, stopped_error
from segan.training.trainer import TrainingProgress
from segan.utils.signals import StopRequest

WORKER_START_TIMEOUT_S = (
    20  # for places for an elastic run's workers, before their number is thought over
)


def train(
    config: Config,
    run: Run,
    on_progress: Callable[[TrainingProgress], None],
    trial_context: dict[str, Any] | None = None,
    callbacks: Sequence[UserCallback] = (),
    stop_request: StopRequest | None = None,
) -> None:
    """Trains on the cluster that this process has joined, on from the run's latest checkpoint.

    A worker group that left because a node of it is to be taken away is started again elsewhere,
    and that counts for no failure.

    Args:
        observe: is shown the workers' status a few times a second.
        trial: in a study, the `trial`, `judge` and `runs_here` of
            `ray_jobs.training.worker.train_loop_per_worker`.
        callbacks: of Ray Train.
        wish: to stop; the workers get some time to follow it, and are ended then.

    Raises:
        UsageError: the configuration fits neither the records nor the cluster, or another
            process trains this run.
        SeganError: a worker met a user's mistake; its message is the worker's.
        StoppedError: the wish was followed.
    """
    # A trial's process is one of the study's, and it is the study that is held.
    with contextlib.nullcontext() if trial_context else hold_lease(run.uri):
        _train(config, run, on_progress, stop_request or StopRequest(), trial_context, callbacks)


def _train(
    config: Config,
    run: Run,
    on_progress: Callable[[TrainingProgress], None],
    stop_request: StopRequest,
    trial_context: dict[str, Any] | None,
    callbacks: Sequence[UserCallback],
) -> None:
    max_concurrent_runs(config.cluster)
    # How often Ray Train takes up a report and looks for nodes that are to be taken away, seconds;
    # its own 2 s would be much of a short epoch, its 5 s much of a short notice.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    if config.cluster.elastic:
        # Where a node goes while places on it are asked for; Ray Train's own 60 s with all else.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKER_START_TIMEOUT_S))
    spec = resolve_resume(config, run)
    run.create_or_resume(config, spec.sampler.manifest.fingerprint)

    def on_update(status: dict[str, Any]) -> None:
        on_progress(TrainingProgress(**status))

    while not spec.is_exhausted:
        coordinator = start_coordinator()
        with monitor_run(coordinator, on_update, stop_request), preserve_sigint_handler():
            result = _fit(
                config,
                run,
                ResumingDataset(config, run, coordinator, spec),
                trial_context,
                callbacks,
            )
        if result.error:
            raise result.error
        if not result.stopped:
            return
        if stop_request():
            raise stopped_error(run)
        spec = resolve_resume(config, run)


def _fit(
    config: Config,
    run: Run,
    dataset: ResumingDataset,
    trial_context: dict[str, Any] | None,
    callbacks: Sequence[UserCallback],
) -> WorkerResult:
    """Ray Train's way through the plan, with as many starts of the worker group as are allowed."""
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "config": config,
            "run": run.uri,
            "coordinator": dataset.coordinator,
            **(trial_context or {}),
        },
        datasets={"train": dataset},
        dataset_config=StreamDataConfig(),
        scaling_config=scaling_config(config),
        run_config=_run_config(config, run, callbacks),
    )
    try:
        result: WorkerResult = trainer.fit().return_value
    except Exception as error:
        if shortfall := elastic_shortfall(config.cluster):
            raise UsageError(f"{shortfall}; nodes have not come back") from error
        raise unwrap_user_error(error) from error
    return result


def scaling_config(config: Config) -> ScalingConfig:
    """What Ray Train reserves for the run's workers."""
    cluster = config.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return ScalingConfig(
        num_workers=(cluster.min_workers, cluster.workers) if cluster.elastic else cluster.workers,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _run_config(config: Config, run: Run, callbacks: Sequence[UserCallback]) -> RunConfig:
    own_callbacks = [NodeLossCallback(config.cluster)] if config.cluster.elastic else []
    # A fresh name for Ray's own bookkeeping: going on is by the run's checkpoints alone.
    return RunConfig(
        name=datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f"),
        storage_path=storage.join(run.uri, "ray"),
        callbacks=[*callbacks, *own_callbacks],
        failure_config=FailureConfig(
            max_failures=config.cluster.max_failures,
            controller_failure_limit=config.cluster.max_failures,
        ),
    )

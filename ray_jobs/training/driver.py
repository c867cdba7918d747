"""The driver of one training run with Ray Train."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from ray_jobs.cluster.capacity import max_concurrent_runs
from ray_jobs.cluster.connect import preserve_sigint_handler, unwrap_user_error
from ray_jobs.cluster.queue import Claim, wait_for_turn
from ray_jobs.training.coordinator import monitor_run, queued_coordinator
from ray_jobs.training.elastic import NodeLossCallback, elastic_shortfall
from ray_jobs.training.stream import StreamDataConfig
from ray_jobs.training.worker import ResumingDataset, WorkerResult, train_loop_per_worker
from segan import storage
from segan.config import Config
from segan.errors import UsageError
from segan.runs.run import Run
from segan.storage.lease import current_fence, hold_lease
from segan.training.launch import stopped_error
from segan.training.resume import resolve_resume
from segan.training.trainer import TrainingProgress
from segan.utils.signals import StopRequest

# How long an elastic run waits for its workers before it recomputes how many it can have.
WORKER_START_TIMEOUT_S = 20


def train(
    config: Config,
    run: Run,
    on_progress: Callable[[TrainingProgress], None],
    trial_context: dict[str, Any] | None = None,
    callbacks: Sequence[UserCallback] = (),
    stop_request: StopRequest | None = None,
) -> None:
    """Trains a run on the connected cluster, from its latest checkpoint if it has one.

    A worker group that stops because one of its nodes is preempted is restarted on other nodes;
    this does not count as a failure.

    Args:
        on_progress: called with the workers' progress a few times a second.
        trial_context: in a study, the `trial`, `decisions` and `runs_per_node` of
            `ray_jobs.training.worker.train_loop_per_worker`, and the `fingerprint` of its records.
        callbacks: additional callbacks for Ray Train.
        stop_request: stops the workers after a checkpoint; they are aborted if that takes too long.

    Raises:
        UsageError: the configuration fits neither the records nor the cluster, or another
            process trains this run.
        SeganError: raised in a worker; the error is the worker's.
        StoppedError: the run stopped as requested.
    """
    stop_request = stop_request or StopRequest()
    if trial_context:  # the lease is that of the study
        _train(config, run, on_progress, stop_request, trial_context, callbacks)
        return
    with hold_lease(run.uri):
        run = Run(run.uri, current_fence(run.uri))
        _train(config, run, on_progress, stop_request, None, callbacks)


def _train(
    config: Config,
    run: Run,
    on_progress: Callable[[TrainingProgress], None],
    stop_request: StopRequest,
    trial_context: dict[str, Any] | None,
    callbacks: Sequence[UserCallback],
) -> None:
    max_concurrent_runs(config.cluster)
    # How often Ray Train polls its workers and looks for preempted nodes. Its defaults of 2 and 5 s
    # are long compared with a short epoch and a short notice.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    if config.cluster.elastic:  # Ray Train's default of 60 s is for runs of fixed size
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKER_START_TIMEOUT_S))
    fingerprint = (trial_context or {}).get("fingerprint")
    resume_point = resolve_resume(config, run, fingerprint=fingerprint)
    run.create_or_resume(config, resume_point.spec.sampler.manifest.fingerprint)

    def on_update(progress: dict[str, Any]) -> None:
        on_progress(TrainingProgress(**progress))

    if resume_point.is_finished:
        return
    step_timeout_s = config.cluster.step_timeout_s
    with queued_coordinator(Claim.of_run(run.uri, config.cluster)) as (coordinator, number):
        # A study waits before its first trial, and gives up on none.
        timeout_s = 0.0 if trial_context else config.cluster.resource_timeout_s
        wait_for_turn(config.cluster, run.uri, number, stop_request, timeout_s)
        while not resume_point.is_finished:
            dataset = ResumingDataset(config, run, coordinator, resume_point)
            with (
                monitor_run(coordinator, on_update, stop_request, step_timeout_s),
                preserve_sigint_handler(),
            ):
                result = _fit(config, run, dataset, trial_context, callbacks)
            if result.error:
                raise result.error
            if not result.stopped:
                return
            if stop_request():
                raise stopped_error(run)
            resume_point = resolve_resume(config, run)


def _fit(
    config: Config,
    run: Run,
    dataset: ResumingDataset,
    trial_context: dict[str, Any] | None,
    callbacks: Sequence[UserCallback],
) -> WorkerResult:
    """Runs Ray Train's trainer once, with `cluster.max_failures` restarts of the worker group."""
    if config.cluster.elastic:
        callbacks = [*callbacks, NodeLossCallback(config.cluster)]
    max_failures = config.cluster.max_failures
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "config": config,
            "run": run.uri,
            "fence": run.fence,
            "coordinator": dataset.coordinator,
            **(trial_context or {}),
        },
        datasets={"train": dataset},
        dataset_config=StreamDataConfig(),
        scaling_config=scaling_config(config),
        run_config=RunConfig(
            # A new name each time: a run resumes from its own checkpoints, not from Ray's state.
            name=datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f"),
            storage_path=storage.join(run.uri, "ray"),
            callbacks=[*callbacks],
            failure_config=FailureConfig(
                max_failures=max_failures, controller_failure_limit=max_failures
            ),
        ),
    )
    try:
        result: WorkerResult = trainer.fit().return_value
    except Exception as error:
        if shortfall := elastic_shortfall(config.cluster):
            raise UsageError(f"{shortfall}; nodes have not come back") from error
        raise unwrap_user_error(error) from error
    return result


def scaling_config(config: Config) -> ScalingConfig:
    """The workers and their resources that Ray Train reserves for a run."""
    cluster = config.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return ScalingConfig(
        num_workers=(cluster.min_workers, cluster.workers) if cluster.elastic else cluster.workers,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
    )

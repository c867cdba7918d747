"""The driver of one training run with Ray Train."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from ray_jobs.cluster.capacity import (
    cluster_has_gpu,
    max_concurrent_runs,
    resolve_cluster_device,
)
from ray_jobs.cluster.connect import preserve_sigint_handler, unwrap_user_error
from ray_jobs.cluster.queue import Claim, wait_for_turn
from ray_jobs.cluster.ray_storage import ray_storage
from ray_jobs.training.coordinator import monitor_run, queued_coordinator
from ray_jobs.training.elastic import NodeLossCallback, elastic_shortfall
from ray_jobs.training.process_group import FileRendezvousConfig
from ray_jobs.training.stream import StreamDataConfig
from ray_jobs.training.worker import ResumingDataset, WorkerResult, train_loop_per_worker
from segan import storage
from segan.config import ClusterConfig, Config
from segan.errors import UsageError
from segan.runs.run import Run
from segan.storage.lease import current_fence, hold_lease
from segan.training.device import announce_device, resolve_performance
from segan.training.launch import stopped_error
from segan.training.resume import announce_initial_weights, create_or_resume, resolve_resume
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
    num_profiled_steps: int = 0,
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
        num_profiled_steps: see `segan.training.profile`.

    Raises:
        UsageError: the configuration fits neither the records nor the cluster, or another
            process trains this run.
        SeganError: raised in a worker; the error is the worker's.
        StoppedError: the run stopped as requested.
    """
    stop_request = stop_request or StopRequest()
    context = {"num_profiled_steps": num_profiled_steps, **(trial_context or {})}
    if trial_context:  # the lease is that of the study
        _train(config, run, on_progress, stop_request, context, callbacks)
        return
    with hold_lease(run.uri):
        run = Run(run.uri, current_fence(run.uri))
        _train(config, run, on_progress, stop_request, context, callbacks)


def _train(
    config: Config,
    run: Run,
    on_progress: Callable[[TrainingProgress], None],
    stop_request: StopRequest,
    context: dict[str, Any],
    callbacks: Sequence[UserCallback],
) -> None:
    cluster = resolve_cluster_device(config.cluster)
    max_concurrent_runs(cluster)
    # How often Ray Train polls its workers and looks for preempted nodes. Its defaults of 2 and 5 s
    # are long compared with a short epoch and a short notice.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    if config.cluster.elastic:  # Ray Train's default of 60 s is for runs of fixed size
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(WORKER_START_TIMEOUT_S))
    resume_point = resolve_resume(config, run, fingerprint=context.get("fingerprint"))
    config = resolve_performance(config, cluster.device, run.recorded_identity())
    create_or_resume(config, run, resume_point)
    if "trial" not in context:
        announce_device(cluster, config.performance, cluster_has_gpu())
        announce_initial_weights(resume_point)

    def on_update(progress: dict[str, Any]) -> None:
        on_progress(TrainingProgress(**progress))

    while not resume_point.is_finished:
        with queued_coordinator(Claim.of_run(run.uri, cluster)) as (coordinator, number):
            # A study waits before its first trial, and gives up on none.
            timeout_s = 0.0 if "trial" in context else cluster.resource_timeout_s
            wait_for_turn(cluster, run.uri, number, stop_request, timeout_s)
            while not resume_point.is_finished and ray.get(coordinator.get_claim.remote()):
                dataset = ResumingDataset(config, run, coordinator, resume_point)
                with (
                    monitor_run(coordinator, on_update, stop_request, cluster.step_timeout_s),
                    preserve_sigint_handler(),
                ):
                    result = _fit(config, cluster, run, dataset, context, callbacks)
                if result.error:
                    raise result.error
                if not result.stopped:
                    return
                if stop_request():
                    raise stopped_error(run)
                resume_point = resolve_resume(config, run)


def _fit(
    config: Config,
    cluster: ClusterConfig,
    run: Run,
    dataset: ResumingDataset,
    context: dict[str, Any],
    callbacks: Sequence[UserCallback],
) -> WorkerResult:
    """Runs Ray Train's trainer once, with `cluster.max_failures` restarts of the worker group.

    Args:
        cluster: with a resolved device.
    """
    if cluster.elastic:
        callbacks = [*callbacks, NodeLossCallback(cluster)]
    max_failures = cluster.max_failures
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "config": config,
            "device": cluster.device,
            "run": run.uri,
            "fence": run.fence,
            "coordinator": dataset.coordinator,
            **context,
        },
        datasets={"train": dataset},
        dataset_config=StreamDataConfig(),
        scaling_config=scaling_config(cluster),
        torch_config=FileRendezvousConfig(),
        run_config=RunConfig(
            # A new name each time: a run resumes from its own checkpoints, not from Ray's state.
            name=datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f"),
            **ray_storage(storage.join(run.uri, "ray")),
            callbacks=[*callbacks],
            failure_config=FailureConfig(
                max_failures=max_failures, controller_failure_limit=max_failures
            ),
        ),
    )
    try:
        result: WorkerResult = trainer.fit().return_value
    except Exception as error:
        if shortfall := elastic_shortfall(cluster):
            raise UsageError(f"{shortfall}; nodes have not come back") from error
        raise unwrap_user_error(error) from error
    return result


def scaling_config(cluster: ClusterConfig) -> ScalingConfig:
    """The workers and their resources that Ray Train reserves, with a resolved device."""
    resources, gpus = {"CPU": cluster.cpus_per_worker}, cluster.reserved_gpus
    if gpus:
        resources["GPU"] = gpus
    return ScalingConfig(
        num_workers=(cluster.min_workers, cluster.workers) if cluster.elastic else cluster.workers,
        use_gpu=gpus > 0,
        resources_per_worker=resources,
    )

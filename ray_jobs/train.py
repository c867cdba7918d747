"""One training as a Ray Train job.

ray job submit --working-dir . -- python -m ray_jobs.train --config ray_jobs/configs/paper.yaml
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from ray_jobs.board import start_board, watching
from ray_jobs.capacity import runs_at_once
from ray_jobs.cluster import interruptible, users_part
from ray_jobs.elastic import LossOfNodes, lacking
from ray_jobs.stream import StreamConfig
from ray_jobs.worker import Ending, Plans, train_worker
from segan import storage
from segan.config import Config
from segan.errors import UsageError
from segan.interrupts import Wish
from segan.lease import hold
from segan.runs import Run
from segan.training.loop import Status
from segan.training.session import make_plan, stopped_error

START_SECONDS = 20  # for places for an elastic run's workers, before their number is thought over


def train(
    config: Config,
    run: Run,
    observe: Callable[[Status], None],
    trial: dict[str, Any] | None = None,
    callbacks: Sequence[UserCallback] = (),
    wish: Wish | None = None,
) -> None:
    """Trains on the cluster that this process has joined, on from the run's latest checkpoint.

    A worker group that left because a node of it is to be taken away is started again elsewhere,
    and that counts for no failure.

    Args:
        observe: is shown the workers' status a few times a second.
        trial: in a study, the `trial`, `judge` and `runs_here` of `ray_jobs.worker.train_worker`.
        callbacks: of Ray Train.
        wish: to stop; the workers get some time to follow it, and are ended then.

    Raises:
        UsageError: the configuration fits neither the records nor the cluster, or another
            process trains this run.
        SeganError: a worker met a user's mistake; its message is the worker's.
        StoppedError: the wish was followed.
    """
    # A trial's process is one of the study's, and it is the study that is held.
    with contextlib.nullcontext() if trial else hold(run.uri):
        _train(config, run, observe, wish or Wish(), trial, callbacks)


def _train(
    config: Config,
    run: Run,
    observe: Callable[[Status], None],
    wish: Wish,
    trial: dict[str, Any] | None,
    callbacks: Sequence[UserCallback],
) -> None:
    runs_at_once(config.cluster)
    # How often Ray Train takes up a report and looks for nodes that are to be taken away, seconds;
    # its own 2 s would be much of a short epoch, its 5 s much of a short notice.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    if config.cluster.elastic:
        # Where a node goes while places on it are asked for; Ray Train's own 60 s with all else.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    plan = make_plan(config, run)
    run.begin(config, plan.sequence.manifest.fingerprint)

    def show(status: dict[str, Any]) -> None:
        observe(Status(**status))

    while not plan.done:
        board = start_board()
        with watching(board, show, wish), interruptible():
            ending = _attempt(config, run, Plans(config, run, board, plan), trial, callbacks)
        if ending.error:
            raise ending.error
        if not ending.stopped:
            return
        if wish():
            raise stopped_error(run)
        plan = make_plan(config, run)


def _attempt(
    config: Config,
    run: Run,
    plans: Plans,
    trial: dict[str, Any] | None,
    callbacks: Sequence[UserCallback],
) -> Ending:
    """Ray Train's way through the plan, with as many starts of the worker group as are allowed."""
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "run": run.uri, "board": plans.board, **(trial or {})},
        datasets={"train": plans},
        dataset_config=StreamConfig(),
        scaling_config=scaling(config),
        run_config=_bookkeeping(config, run, callbacks),
    )
    try:
        ending: Ending = trainer.fit().return_value
    except Exception as error:
        if lack := lacking(config.cluster):
            raise UsageError(f"{lack}; nodes have not come back") from error
        raise users_part(error) from error
    return ending


def scaling(config: Config) -> ScalingConfig:
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


def _bookkeeping(config: Config, run: Run, callbacks: Sequence[UserCallback]) -> RunConfig:
    ours = [LossOfNodes(config.cluster)] if config.cluster.elastic else []
    # A fresh name for Ray's own bookkeeping: going on is by the run's checkpoints alone.
    return RunConfig(
        name=datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f"),
        storage_path=storage.join(run.uri, "ray"),
        callbacks=[*callbacks, *ours],
        failure_config=FailureConfig(
            max_failures=config.cluster.max_failures,
            controller_failure_limit=config.cluster.max_failures,
        ),
    )


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

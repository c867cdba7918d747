"""One training as a Ray Train job.

ray job submit --working-dir . -- python -m ray_jobs.train --config ray_jobs/configs/paper.yaml
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from ray_jobs.cluster import check_fits
from ray_jobs.stream import StreamConfig
from ray_jobs.worker import TELL_SECONDS, start_board, train_worker
from segan import storage
from segan.config import Config
from segan.errors import SeganError
from segan.runs import Run
from segan.training.loop import Status
from segan.training.session import hardware, make_plan


def train(
    config: Config,
    run: Run,
    observe: Callable[[Status], None],
    trial: dict[str, Any] | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> None:
    """Trains on the cluster that this process has joined, on from the run's latest checkpoint.

    Args:
        observe: is shown the workers' status a few times a second.
        trial: in a study, the `trial` and `judge` of `ray_jobs.worker.train_worker`.
        callbacks: of Ray Train.

    Raises:
        UsageError: the configuration fits neither the records nor the cluster.
        SeganError: a worker met a user's mistake; its message is the worker's.
    """
    check_fits(config.cluster)
    # How often Ray Train takes up a report, seconds; its own 2 s would be much of a short epoch.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    plan = make_plan(config, run)
    run.begin(config, plan.sequence.manifest.fingerprint, hardware())
    if plan.done:
        return
    board = start_board()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "run": run.uri, "board": board, **(trial or {})},
        datasets={"train": functools.partial(make_plan, config, run)},
        dataset_config=StreamConfig(),
        scaling_config=_scaling(config),
        run_config=_attempt(config, run, callbacks),
    )
    with _watching(board, observe):
        try:
            trainer.fit()
        except Exception as error:
            raise _users_part(error) from error


def _scaling(config: Config) -> ScalingConfig:
    cluster = config.cluster
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    return ScalingConfig(
        num_workers=cluster.workers,
        use_gpu=cluster.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _attempt(config: Config, run: Run, callbacks: Sequence[UserCallback]) -> RunConfig:
    # A fresh name for Ray's own bookkeeping: going on is by the run's checkpoints alone.
    return RunConfig(
        name=datetime.now(UTC).strftime("%Y%m%dT%H%M%S"),
        storage_path=storage.join(run.uri, "ray"),
        callbacks=list(callbacks),
        failure_config=FailureConfig(
            max_failures=config.cluster.max_failures,
            controller_failure_limit=config.cluster.max_failures,
        ),
    )


@contextlib.contextmanager
def _watching(board: Any, observe: Callable[[Status], None]) -> Iterator[None]:
    """Shows the workers' status in this process while the block runs."""
    over = threading.Event()

    def look() -> None:
        if (found := ray.get(board.read.remote())) is not None:
            observe(Status(**found))

    def watch() -> None:
        while not over.wait(TELL_SECONDS):
            look()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        look()
    finally:
        over.set()
        watcher.join(timeout=5)


def _users_part(error: BaseException) -> BaseException:
    """The SeganError in what Ray wrapped it in, a worker's or a read task's; else the error."""
    inside = [error]
    for one in inside:
        if isinstance(one, SeganError) and not isinstance(one, RayError):
            return one
        causes = [*getattr(one, "worker_failures", {}).values(), getattr(one, "cause", None)]
        inside += [c for c in (*causes, one.__cause__) if isinstance(c, BaseException)]
    return error


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))

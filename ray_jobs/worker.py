"""Binds the training loop to Ray Train: what each DDP worker runs, and what it tells the driver."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import ray
from ray import train

from ray_jobs.stream import batches
from segan.config import Config
from segan.runs import Run
from segan.training.loop import Status, Watchers
from segan.training.session import make_plan, open_training

TELL_SECONDS = 0.5


class Board:
    """An actor that holds the latest status, so that the driver can look at a running worker."""

    def __init__(self) -> None:
        self.status: dict[str, Any] | None = None

    def write(self, status: dict[str, Any]) -> None:
        self.status = status

    def read(self) -> dict[str, Any] | None:
        return self.status


class Teller:
    """Sends a worker's status to the board, at most twice a second and without waiting."""

    def __init__(self, board: Any):
        self.board = board
        self.told = 0.0

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        if now - self.told >= TELL_SECONDS or status.samples >= status.total:
            self.told = now
            self.board.write.remote(dataclasses.asdict(status))


def train_worker(settings: dict[str, Any]) -> None:
    """The training function of every worker.

    Args:
        settings: `config`, `run` (its URI), `board` (the actor's handle), and in a study
            `trial` (its name) and `judge` (the actor that says whether it goes on).
    """
    config: Config = settings["config"]
    run = Run(settings["run"])
    plan = make_plan(config, run)
    reporter = Reporter(settings.get("trial"), settings.get("judge"))
    watchers = Watchers(observe=Teller(settings["board"]), report=reporter)
    stream = train.get_dataset_shard("train")
    training = open_training(config, run, plan, watchers)
    training.train(batches(stream, plan.sequence.manifest))


class Reporter:
    """Tells Ray Train of a validation and, in a study, waits for the word on whether to go on.

    The checkpoint is in the run's folder already, checksums and all; Ray is told the numbers.
    """

    def __init__(self, trial: str | None, judge: Any):
        self.trial, self.judge = trial, judge

    def __call__(self, metrics: dict[str, Any]) -> bool:
        train.report({name: v for name, v in metrics.items() if not isinstance(v, list)})
        if self.judge is None:
            return True
        return bool(ray.get(self.judge.verdict.remote(self.trial, metrics["epoch"])))


def start_board() -> Any:
    return ray.remote(num_cpus=0)(Board).remote()

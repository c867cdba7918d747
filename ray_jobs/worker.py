"""Binds the training loop to Ray Train: what each DDP worker runs, and what it tells the driver."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import ray
from ray import train
from ray.train.v2._internal.execution.context import get_train_context

from ray_jobs.board import TELL_SECONDS
from ray_jobs.metrics import Gauges
from ray_jobs.stream import batches
from segan import storage
from segan.config import Config
from segan.data.batches import Plan
from segan.errors import NotFiniteError
from segan.runs import Run
from segan.training.loop import Status, Watchers
from segan.training.session import make_plan, note_hardware, open_training


class Plans:
    """Makes the plan of each start of the worker group, in the controller, and leaves it for them.

    So all ranks and the stream begin at the same checkpoint, which is read through once.
    """

    def __init__(self, config: Config, run: Run, board: Any, first: Plan):
        """
        Args:
            first: of the first start; the driver has made it already.
        """
        self.config, self.run, self.board = config, run, board
        self.first: Plan | None = first

    def __call__(self) -> Plan:
        storage.be_patient()  # the command's own look was before
        lines: list[str] = []
        plan, self.first = self.first, None
        if plan is None:
            plan = make_plan(self.config, self.run, lines.append)
        ray.get(self.board.begin.remote(plan, lines))
        return plan


class Teller:
    """Notes a worker's status for the gauges and, at most twice a second, sends it to the board.

    The board's answer says whether the driver wishes an end.
    """

    def __init__(self, board: Any, gauges: Gauges):
        self.board, self.gauges = board, gauges
        self.told = 0.0
        self.answer: Any = None
        self.stopping = False

    def __call__(self, status: Status) -> None:
        self.gauges.keep(vars(status))
        now = time.monotonic()
        if now - self.told >= TELL_SECONDS or status.samples >= status.total:
            self.told = now
            self.answer = self.board.write.remote(dataclasses.asdict(status))

    def stop(self) -> bool:
        """Whether the driver, as far as it is heard of, or Ray wishes this worker to stop.

        Ray tells each worker when the node of any of them is about to be taken away.
        """
        if self.answer is not None and ray.wait([self.answer], timeout=0)[0]:
            self.stopping, self.answer = bool(ray.get(self.answer)), None
        preemption = get_train_context().preemption_context
        return self.stopping or preemption.preemption_info is not None


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a worker group left its training, where it was no fault.

    Attributes:
        stopped: before the end, as it was told to, with a checkpoint.
        error: what the same again would not mend.
    """

    stopped: bool = False
    error: NotFiniteError | None = None


def train_worker(settings: dict[str, Any]) -> Ending:
    """The training function of every worker.

    Args:
        settings: `config`, `run` (its URI), `board` (the actor's handle), and in a study
            `trial` (its name), `judge` (the actor that says whether it goes on) and `runs_here`
            (trials that share a node).
    """
    storage.be_patient()
    config: Config = settings["config"]
    run, board = Run(settings["run"]), settings["board"]
    context = train.get_context()
    # An elastic run may have found fewer nodes than it asked for.
    plan: Plan = ray.get(board.read_plan.remote()).over(context.get_world_size())
    rank = context.get_world_rank()
    gauges = Gauges(run.uri, rank)
    if rank == 0:
        gauges.keep({"retries": ray.get(board.start.remote())})
    reporter = Reporter(gauges, settings.get("trial"), settings.get("judge"))
    teller = Teller(board, gauges)
    watchers = Watchers(observe=teller, report=reporter, stop=teller.stop)
    note_hardware(run)
    stream = train.get_dataset_shard("train")
    training = open_training(config, run, plan, watchers, settings.get("runs_here", 1))
    with gauges.exported():
        try:
            training.train(batches(stream, plan))
        except NotFiniteError as error:  # raised, it would be tried again
            return Ending(error=error)
    return Ending(stopped=training.stopped)


class Reporter:
    """Tells Ray Train of a validation and, in a study, waits for the word on whether to go on.

    The checkpoint is in the run's folder already, checksums and all; Ray is told the numbers.
    """

    def __init__(self, gauges: Gauges, trial: str | None, judge: Any):
        self.gauges, self.trial, self.judge = gauges, trial, judge

    def __call__(self, metrics: dict[str, Any]) -> bool:
        self.gauges.keep(metrics)
        train.report({name: v for name, v in metrics.items() if not isinstance(v, list)})
        if self.judge is None:
            return True
        return bool(ray.get(self.judge.verdict.remote(self.trial, metrics["epoch"])))

"""Binds the training loop to Ray Train: what each DDP worker runs, and what it tells the driver."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import ray
from ray import train
from ray.train.v2._internal.execution.context import get_train_context

from ray_jobs.training.coordinator import PROGRESS_INTERVAL_S
from ray_jobs.training.metrics import Gauges
from ray_jobs.training.stream import iter_batches
from segan import storage
from segan.config import Config
from segan.data.stream.batches import StreamSpec
from segan.errors import NonFiniteError
from segan.runs.run import Run
from segan.training.launch import build_trainer, record_hardware, resolve_resume
from segan.training.trainer import Callbacks, TrainingProgress


class ResumingDataset:
    """Makes the plan of each start of the worker group, in the controller, and leaves it for them.

    So all ranks and the stream begin at the same checkpoint, which is read through once.
    """

    def __init__(self, config: Config, run: Run, coordinator: Any, initial_spec: StreamSpec):
        """
        Args:
            first: of the first start; the driver has made it already.
        """
        self.config, self.run, self.coordinator = config, run, coordinator
        self.initial_spec: StreamSpec | None = initial_spec

    def __call__(self) -> StreamSpec:
        storage.retry_access_checks()  # the command's own look was before
        messages: list[str] = []
        spec, self.initial_spec = self.initial_spec, None
        if spec is None:
            spec = resolve_resume(self.config, self.run, messages.append)
        ray.get(self.coordinator.set_stream_spec.remote(spec, messages))
        return spec


class ProgressPublisher:
    """Notes a worker's status for the gauges and, at most twice a second, sends it to the board.

    The board's answer says whether the driver wishes an end.
    """

    def __init__(self, coordinator: Any, gauges: Gauges):
        self.coordinator, self.gauges = coordinator, gauges
        self.last_published = 0.0
        self.pending_reply: Any = None
        self.stop_requested = False

    def __call__(self, progress: TrainingProgress) -> None:
        self.gauges.update(vars(progress))
        now = time.monotonic()
        if (
            now - self.last_published >= PROGRESS_INTERVAL_S
            or progress.samples >= progress.total_samples
        ):
            self.last_published = now
            self.pending_reply = self.coordinator.update_progress.remote(
                dataclasses.asdict(progress)
            )

    def should_stop(self) -> bool:
        """Whether the driver, as far as it is heard of, or Ray wishes this worker to stop.

        Ray tells each worker when the node of any of them is about to be taken away.
        """
        if self.pending_reply is not None and ray.wait([self.pending_reply], timeout=0)[0]:
            self.stop_requested, self.pending_reply = bool(ray.get(self.pending_reply)), None
        preemption = get_train_context().preemption_context
        return self.stop_requested or preemption.preemption_info is not None


@dataclasses.dataclass(frozen=True)
class WorkerResult:
    """How a worker group left its training, where it was no fault.

    Attributes:
        stopped: before the end, as it was told to, with a checkpoint.
        error: what the same again would not mend.
    """

    stopped: bool = False
    error: NonFiniteError | None = None


def train_loop_per_worker(train_loop_config: dict[str, Any]) -> WorkerResult:
    """The training function of every worker.

    Args:
        settings: `config`, `run` (its URI), `board` (the actor's handle), and in a study
            `trial` (its name), `judge` (the actor that says whether it goes on) and `runs_here`
            (trials that share a node).
    """
    storage.retry_access_checks()
    config: Config = train_loop_config["config"]
    run, coordinator = Run(train_loop_config["run"]), train_loop_config["coordinator"]
    context = train.get_context()
    # An elastic run may have found fewer nodes than it asked for.
    spec: StreamSpec = ray.get(coordinator.get_stream_spec.remote()).with_world_size(
        context.get_world_size()
    )
    rank = context.get_world_rank()
    gauges = Gauges(run.uri, rank)
    if rank == 0:
        gauges.update({"restarts": ray.get(coordinator.register_start.remote())})
    report_validation = ValidationReporter(
        gauges, train_loop_config.get("trial"), train_loop_config.get("decisions")
    )
    publisher = ProgressPublisher(coordinator, gauges)
    callbacks = Callbacks(
        on_step_end=publisher,
        on_validation_end=report_validation,
        should_stop=publisher.should_stop,
    )
    record_hardware(run)
    stream = train.get_dataset_shard("train")
    trainer = build_trainer(config, run, spec, callbacks, train_loop_config.get("runs_per_node", 1))
    with gauges.export_in_background():
        try:
            trainer.train(iter_batches(stream, spec))
        except NonFiniteError as error:  # raised, it would be tried again
            return WorkerResult(error=error)
    return WorkerResult(stopped=trainer.stopped)


class ValidationReporter:
    """Tells Ray Train of a validation and, in a study, waits for the word on whether to go on.

    The checkpoint is in the run's folder already, checksums and all; Ray is told the numbers.
    """

    def __init__(self, gauges: Gauges, trial: str | None, decisions: Any):
        self.gauges, self.trial, self.decisions = gauges, trial, decisions

    def __call__(self, metrics: dict[str, Any]) -> bool:
        self.gauges.update(metrics)
        train.report({name: v for name, v in metrics.items() if not isinstance(v, list)})
        if self.decisions is None:
            return True
        return bool(ray.get(self.decisions.get.remote(self.trial, metrics["epoch"])))

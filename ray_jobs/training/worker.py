"""Connects the trainer to Ray Train: the function of each DDP worker and its callbacks."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray import train

from ray_jobs.cluster.ray_internals import TRAIN_CONTEXT
from ray_jobs.training.coordinator import PROGRESS_INTERVAL_S
from ray_jobs.training.metrics import Gauges
from ray_jobs.training.stream import RankStream
from segan import storage
from segan.config import Config
from segan.data.stream.batches import Batch, StreamSpec
from segan.errors import NonFiniteError, SeganError
from segan.runs.run import Run
from segan.training.device import torch_device
from segan.training.distributed import broadcast_object
from segan.training.launch import build_trainer, record_hardware
from segan.training.metrics import EpochMetrics
from segan.training.resume import ResumePoint, resolve_resume
from segan.training.trainer import Callbacks, TrainingProgress
from segan.utils.messages import capture_messages


class ResumingDataset:
    """A dataset for Ray Train that begins at the run's latest checkpoint.

    Ray Train's controller calls it at each start of the worker group. The checkpoint is verified
    once, and the stream is left with the coordinator, so all ranks start from the same state. An
    error here is not retried: the run's records are gone, or another driver has the run.
    """

    def __init__(self, config: Config, run: Run, coordinator: Any, initial: ResumePoint):
        """
        Args:
            initial: where the first start begins, which the driver has resolved already.
        """
        self.config, self.run, self.coordinator = config, run, coordinator
        self.initial: ResumePoint | None = initial

    def __call__(self) -> StreamSpec:
        storage.retry_access_checks()  # the driver has checked the access before
        self.run.fence()
        messages: list[str] = []
        resume_point, self.initial = self.initial, None
        if resume_point is None:
            resume_point = resolve_resume(self.config, self.run, messages.append)
        reference = [ray.put(resume_point)]
        ray.get(self.coordinator.set_resume_point.remote(reference, messages))
        return resume_point.spec


class ProgressPublisher:
    """Passes a worker's progress to its gauges and, at most twice a second, to the coordinator.

    The coordinator's reply says whether the driver has requested a stop.
    """

    def __init__(self, coordinator: Any, gauges: Gauges):
        self.coordinator, self.gauges = coordinator, gauges
        self.last_published = 0.0
        self.pending_reply: Any = None
        self.stop_requested = False

    def __call__(self, progress: TrainingProgress) -> None:
        self.gauges.update(vars(progress))
        now, is_last = time.monotonic(), progress.samples >= progress.total_samples
        if now - self.last_published >= PROGRESS_INTERVAL_S or is_last:
            self.last_published = now
            fields = dataclasses.asdict(progress)
            self.pending_reply = self.coordinator.update_progress.remote(fields)

    def should_stop(self) -> bool:
        """Whether the driver, by its latest reply, or Ray wants this worker to stop.

        Ray tells all workers when the node of one of them is about to be preempted.
        """
        if self.pending_reply is not None and ray.wait([self.pending_reply], timeout=0)[0]:
            self.stop_requested, self.pending_reply = bool(ray.get(self.pending_reply)), None
        preemption = TRAIN_CONTEXT.load()().preemption_context
        return self.stop_requested or preemption.preemption_info is not None


class SilentDriverError(SeganError):
    """The workers stop, since another driver may have taken their study over."""


@dataclasses.dataclass(frozen=True)
class WorkerResult:
    """How a worker group ended, if not by a fault that Ray Train retries.

    Attributes:
        stopped: before the end of the training, after a checkpoint, because it was requested.
        error: a failure that a retry would repeat.
    """

    stopped: bool = False
    error: SeganError | None = None


def train_loop_per_worker(train_loop_config: dict[str, Any]) -> WorkerResult:
    """Ray Train's function of each worker.

    Args:
        train_loop_config: `config`, `device` (`cuda` or `cpu`), `run` (its URI), `fence` (of the
            driver's lease), `coordinator` (the actor's handle) and `num_profiled_steps`. In a study
            also `trial` (its name), `decisions` (the handle of the StopDecisions actor) and
            `runs_per_node` (the number of trials that share a node).
    """
    storage.retry_access_checks()
    with contextlib.ExitStack() as stack:
        if train.get_context().get_world_rank() == 0:
            stack.enter_context(relay_warnings(train_loop_config["coordinator"]))
        return _train(train_loop_config)


@contextlib.contextmanager
def relay_warnings(coordinator: Any) -> Iterator[None]:
    """Passes the warnings of this process to the driver, which keeps them in driver.log."""

    def relay(_: int, text: str) -> None:
        coordinator.add_rank_zero_message.remote(text)

    with capture_messages(relay, logging.WARNING):
        yield


def _train(train_loop_config: dict[str, Any]) -> WorkerResult:
    config: Config = train_loop_config["config"]
    run = Run(train_loop_config["run"], train_loop_config["fence"])
    coordinator = train_loop_config["coordinator"]
    context = train.get_context()
    resume_point: ResumePoint = ray.get(ray.get(coordinator.get_resume_point.remote())[0])
    # An elastic run may have fewer workers.
    resume_point = resume_point.with_world_size(context.get_world_size())
    rank = context.get_world_rank()
    gauges = Gauges(run.uri, rank)
    actor = ray.get_runtime_context().current_actor
    restarts = ray.get(coordinator.register_worker.remote(rank, actor))
    if rank == 0:
        gauges.update({"restarts": restarts})
    publisher = ProgressPublisher(coordinator, gauges)
    callbacks = Callbacks(
        on_step_end=publisher,
        on_validation_end=ValidationReporter(
            gauges, train_loop_config.get("trial"), train_loop_config.get("decisions")
        ),
        should_stop=publisher.should_stop,
    )
    device = torch_device(train_loop_config["device"])
    record_hardware(config, run, device)
    runs_per_node = train_loop_config.get("runs_per_node", 1)
    profiled = train_loop_config["num_profiled_steps"]
    trainer = build_trainer(config, run, resume_point, callbacks, device, runs_per_node, profiled)
    with gauges.export_in_background():
        try:
            trainer.train(_batches(resume_point.spec))
        except (NonFiniteError, SilentDriverError) as error:
            return WorkerResult(error=error)  # Ray Train would retry an exception
    return WorkerResult(stopped=trainer.stopped)


def _batches(spec: StreamSpec) -> Iterator[Batch]:
    if spec.is_exhausted:  # only the last validation is missing
        return iter(())
    stream: RankStream = train.get_dataset_shard("train")
    return stream.read_batches(spec)


class ValidationReporter:
    """Reports each validation to Ray Train and, in a study, waits for the scheduler's decision.

    Only the metrics are reported; the checkpoint is being written to the run's folder.
    """

    def __init__(self, gauges: Gauges, trial: str | None, decisions: Any):
        self.gauges, self.trial, self.decisions = gauges, trial, decisions

    def __call__(self, metrics: EpochMetrics) -> bool:
        values = metrics.to_dict()
        self.gauges.update(values)
        train.report({name: v for name, v in values.items() if not isinstance(v, list)})
        if self.decisions is None:
            return True
        decision = None
        # One waiting call for each trial, whatever its number of workers.
        if train.get_context().get_world_rank() == 0:
            decision = ray.get(self.decisions.get.remote(self.trial, metrics.epoch))
        decision = broadcast_object(decision)
        if decision is None:
            raise SilentDriverError(f"trial {self.trial}: the driver of its study does not answer")
        return bool(decision)

"""The training loop: batches in, metrics and checkpoints out.

It takes an iterable of batches and calls for what it reports, and knows nothing of where either
comes from: the same loop runs in a debugger, under Ray Train and in a test. A process group must
be up (`distributed.single_process_group` for one worker).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from segan.config import Config
from segan.data.augment import augment, draw
from segan.data.batches import Batch, Plan
from segan.data.records import Frames
from segan.errors import SeganError
from segan.evaluation.sweep import Sweep
from segan.inference.frames import segment_frames
from segan.networks.segmentor import Segmentor
from segan.runs import Checkpoint, Run
from segan.training import state
from segan.training.distributed import (
    average_running_statistics,
    largest_difference,
    rank,
    sum_over_ranks,
    world_size,
)
from segan.training.log import RunLog
from segan.training.schedule import learning_rate, steepness
from segan.training.step import Adversaries, Losses


@dataclass(frozen=True)
class Status:
    """Where a training is, for whoever watches it; `validated` counts the validations so far."""

    epoch: int
    epochs: int
    samples: int
    total: int
    loss: float | None
    jaccard: float | None
    images_per_second: float
    validated: int


@dataclass
class Watchers:
    """Who is told: `observe` of each step by rank 0, `report` of each validation by all.

    `report` says whether to go on, and must say the same to every rank.
    """

    observe: Callable[[Status], None] = lambda status: None
    report: Callable[[dict[str, Any]], bool] = lambda metrics: True


@dataclass
class Clock:
    """Where the time of an epoch goes, in seconds."""

    began: float = field(default_factory=time.perf_counter)
    images: int = 0
    waiting: float = 0.0
    first_batch: float | None = None

    def waited(self, seconds: float) -> None:
        self.waiting += seconds
        self.first_batch = seconds if self.first_batch is None else self.first_batch

    def figures(self) -> dict[str, float]:
        """seconds, images/s of all workers, share of time spent waiting, first batch in ms."""
        seconds = time.perf_counter() - self.began
        return {
            "seconds": round(seconds, 3),
            "images_per_second": round(self.images / seconds, 2),
            "wait_share": round(self.waiting / seconds, 5),
            "first_batch_ms": round(1000 * (self.first_batch or 0.0), 2),
        }


class Training:
    """One run from where it stands to its end."""

    def __init__(
        self,
        config: Config,
        run: Run,
        plan: Plan,
        validation: Frames,
        device: torch.device,
        watchers: Watchers | None = None,
    ):
        """
        Args:
            plan: the rows that `batches` will bring, from the start that `resume_from` stands at.
            validation: this rank's share of the validation frames.
            device: of the networks and the arithmetic.
        """
        self.config, self.run, self.plan = config, run, plan
        self.validation, self.device = validation, device
        self.watchers = watchers or Watchers()
        self.rows = plan.sequence.rows
        self.samples = plan.start
        self.jaccard: float | None = None
        self.loss: float | None = None
        self.validated = 0
        self.go_on = True
        self.adversaries = Adversaries(config, device)
        self.log = RunLog(run, plan.start) if rank() == 0 else None

    def resume_from(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.samples == self.plan.start, "the stream must start where the state does"
        state.restore(self.adversaries, checkpoint, self.device)
        self.jaccard = checkpoint.jaccard

    def train(self, batches: Iterable[Batch]) -> None:
        """Takes every batch of the plan; validates, logs and saves at the ends of epochs.

        Ends early, after a checkpoint, where `report` says not to go on.
        """
        try:
            self._train(iter(batches))
        finally:
            if self.log:
                self.log.close()

    def _train(self, source: Iterator[Batch]) -> None:
        clock = Clock()
        while self.samples < self.plan.stop and self.go_on:
            batch = self._next(source, clock)
            epoch = self.samples // self.rows
            losses = self._step(batch, epoch)
            self.samples += self.plan.rows_per_step
            clock.images += self.plan.rows_per_step
            step = self.samples // self.plan.rows_per_step
            if step % self.config.training.log_every == 0:
                self._log_step(step, epoch, losses)
            self._observe(epoch, clock)
            if self._ends_epoch(epoch):
                self._end_epoch(epoch, losses, clock)
                self._observe(epoch, clock)
                clock = Clock()

    def _next(self, source: Iterator[Batch], clock: Clock) -> Batch:
        asked = time.perf_counter()
        batch = next(source)
        clock.waited(time.perf_counter() - asked)
        expected = self.samples + rank() * self.plan.batch_size
        assert batch.position == expected, f"row {batch.position} came where {expected} was due"
        assert len(batch.ids) == self.plan.batch_size, "ranks need equal batches"
        return batch

    def _step(self, batch: Batch, epoch: int) -> Losses:
        config, total = self.config, self.rows * self.config.training.epochs
        self.adversaries.segmentor.logistic.set_k(
            steepness(epoch, config.training.epochs, config.logistic)
        )
        self.adversaries.set_learning_rate(
            learning_rate(self.samples, total, world_size(), config.optimizer)
        )
        draws = torch.from_numpy(draw(config.training.seed, batch.epochs, batch.ids))
        image, mask = augment(
            torch.tensor(batch.image, device=self.device),
            torch.tensor(batch.mask, device=self.device),
            draws.to(self.device),
            config.augment,
        )
        return self.adversaries.step(image, mask)

    def _log_step(self, step: int, epoch: int, losses: Losses) -> None:
        values = self._read(losses, step) | {
            "step": step,
            "epoch": epoch + 1,
            "learning_rate": self.adversaries.segmentor_optimizer.param_groups[0]["lr"],
            "k": float(self.adversaries.segmentor.logistic.k),
        }
        if self.log:
            self.log.write("step", self.samples, values)

    def _read(self, losses: Losses, step: int) -> dict[str, float]:
        """The losses' means over ranks; every rank stops together where one is not finite."""
        both = torch.stack([losses.critic_loss, losses.segmentor_loss, losses.dice_loss])
        means = (sum_over_ranks(both.double()) / world_size()).tolist()
        values = dict(zip(("critic_loss", "segmentor_loss", "dice_loss"), means, strict=True))
        if not all(torch.isfinite(torch.tensor(means))):
            raise SeganError(
                f"{self.run}: a loss at step {step} is not finite ({values}); the last checkpoint "
                "is kept. Try a smaller optimizer.learning_rate"
            )
        self.loss = values["segmentor_loss"]
        return values

    def _observe(self, epoch: int, clock: Clock) -> None:
        if rank() == 0:
            status = Status(
                epoch=epoch + 1,
                epochs=self.config.training.epochs,
                samples=self.samples,
                total=self.plan.stop,
                loss=self.loss,
                jaccard=self.jaccard,
                images_per_second=clock.images / (time.perf_counter() - clock.began),
                validated=self.validated,
            )
            self.watchers.observe(status)

    def _ends_epoch(self, epoch: int) -> bool:
        return self.samples // self.rows > epoch or self.samples >= self.plan.stop

    def _end_epoch(self, epoch: int, losses: Losses, clock: Clock) -> None:
        step = self.samples // self.plan.rows_per_step
        values: dict[str, Any] = self._read(losses, step) | {"step": step, "epoch": epoch + 1}
        values |= clock.figures()
        values["k"] = float(self.adversaries.segmentor.logistic.k)
        last = self.samples >= self.plan.stop
        validate = (epoch + 1) % self.config.training.validate_every == 0 or last
        if validate:
            values |= self._validate()
        if self.log:
            self.log.write("epoch", self.samples, values)
            self.log.flush()
        if validate:
            self._save(epoch + 1, values)
            self.go_on = self.watchers.report(values)

    def _validate(self) -> dict[str, Any]:
        began = time.perf_counter()
        segmentor = self.adversaries.segmentor
        average_running_statistics(segmentor)
        sweep = validate(segmentor, self.validation, self.config, self.device)
        threshold = sweep.best_threshold()
        scores = sweep.at(threshold)
        fixed = sweep.at(self.config.evaluation.threshold)
        self.jaccard = scores["jaccard"]
        self.validated += 1
        return {
            **scores,
            "threshold": threshold,
            "jaccard_at_config_threshold": fixed["jaccard"],
            "jaccard_curve": [round(float(j), 6) for j in sweep.curve()],
            "validation_seconds": round(time.perf_counter() - began, 3),
        }

    def _save(self, epochs: int, values: dict[str, Any]) -> None:
        for network in (self.adversaries.segmentor, self.adversaries.critic):
            assert largest_difference(network) == 0, "every rank must hold the same weights"
        if rank() == 0:
            manifest = self.plan.sequence.manifest
            info = {
                "epochs": epochs,
                "samples": self.samples,
                "metrics": values,
                "fingerprint": manifest.fingerprint,
                "frame": {"width": manifest.width, "height": manifest.height},
                "config": self.config.model_dump(mode="json"),
            }
            self.run.save(f"epoch_{epochs:05d}", state.capture(self.adversaries), info)
            self.run.keep_best_and_latest()
        # No rank runs ahead of a checkpoint: what is reported as saved is there.
        torch.distributed.barrier()


def validate(segmentor: Segmentor, frames: Frames, config: Config, device: torch.device) -> Sweep:
    """The threshold sweep over the frames of all ranks; S is in training mode afterwards."""
    sweep = Sweep.empty(config.network.classes)
    segmentor.eval()
    for at in range(0, len(frames.ids), config.evaluation.batch_size):
        part = slice(at, at + config.evaluation.batch_size)
        image = torch.tensor(frames.image[part], device=device)
        probability = segment_frames(segmentor, image, config)
        sweep.add(probability, torch.tensor(frames.mask[part], device=device))
    segmentor.train()
    sums = sum_over_ranks(torch.from_numpy(sweep.sums).to(device))
    count = sum_over_ranks(torch.tensor(sweep.count, device=device))
    return Sweep(sums.cpu().numpy(), int(count))

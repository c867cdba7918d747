"""The training loop: batches in, metrics and checkpoints out.

It takes an iterable of batches and calls for what it reports, and knows nothing of where either
comes from: the same loop runs in a debugger, under Ray Train and in a test. A process group must
be up (`distributed.single_process_group` for one worker).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from segan.config import Config
from segan.data.augment import augment, draw
from segan.data.batches import Batch, Plan
from segan.data.records import Frames
from segan.evaluation.sweep import Sweep
from segan.inference.frames import segment_frames
from segan.networks.segmentor import Segmentor
from segan.runs import Checkpoint, Run
from segan.training import state
from segan.training.arithmetic import to_device
from segan.training.clock import Clock
from segan.training.distributed import (
    Council,
    average_running_statistics,
    rank,
    sum_over_ranks,
    world_size,
)
from segan.training.finite import Finiteness, Step
from segan.training.log import RunLog
from segan.training.saving import Saver, epoch_name, step_name
from segan.training.schedule import learning_rate, steepness
from segan.training.step import Adversaries, Losses

LOSSES = ("critic_loss", "segmentor_loss", "dice_loss")


@dataclass(frozen=True)
class Status:
    """Where a training is, for whoever watches it; `validated` counts the validations so far.

    The losses are those of the last step that was logged, None before the first.
    """

    epoch: int
    epochs: int
    samples: int
    total: int
    critic_loss: float | None
    segmentor_loss: float | None
    dice_loss: float | None
    jaccard: float | None
    best_jaccard: float | None
    k: float
    learning_rate: float
    images_per_second: float
    validated: int


@dataclass
class Watchers:
    """Who is told: `observe` of each step by rank 0, `report` of each validation by all.

    `report` says whether to go on, and must say the same to every rank. `stop`, asked on every
    rank after each step, says whether somebody wishes an end: one rank that hears of it is enough.
    """

    observe: Callable[[Status], None] = lambda status: None
    report: Callable[[dict[str, Any]], bool] = lambda metrics: True
    stop: Callable[[], bool] = lambda: False


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
            plan: the rows that `batches` will bring, and the checkpoint that they begin at.
            validation: this rank's share of the validation frames.
            device: of the networks and the arithmetic.
        """
        self.config, self.run, self.plan = config, run, plan
        self.validation, self.device = validation, device
        self.watchers = watchers or Watchers()
        self.rows = plan.sequence.rows
        self.samples = plan.start
        self.jaccard: float | None = None
        self.best_jaccard: float | None = None
        self.losses: dict[str, float | None] = dict.fromkeys(LOSSES)
        self.k = self.learning_rate = 0.0
        self.validated = self.step = 0
        self.waited = self.worked = 0.0  # seconds of whole epochs since this process began
        self.go_on, self.stopped = True, False
        self.adversaries, self.council = Adversaries(config, device), Council()
        self.finiteness = Finiteness(self.adversaries, self.council, str(run))
        if plan.checkpoint:
            self._resume_from(plan.checkpoint)
        self.log = RunLog(run, plan.start) if rank() == 0 else None
        self.saver = Saver(config, run, plan, self.log)

    def _resume_from(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.samples == self.plan.start, "the stream must start where the state does"
        state.restore(self.adversaries, checkpoint, self.device)
        progress = checkpoint.info["progress"]
        self.jaccard, self.best_jaccard = progress["jaccard"], progress["best_jaccard"]
        self.losses, self.validated = dict(progress["losses"]), progress["validated"]
        self.step = progress["step"]

    def train(self, batches: Iterable[Batch]) -> None:
        """Takes every batch of the plan; validates, logs and saves at the ends of epochs.

        Ends early, after a checkpoint, where `report` says not to go on or, with `stopped` set,
        where any rank was told to stop.

        Raises:
            NotFiniteError: a loss or gradient was not finite, on every rank.
        """
        try:
            self._train(iter(batches))
        finally:
            if self.log:
                self.log.close()

    def _train(self, source: Iterator[Batch]) -> None:
        clock, every = Clock(), self.config.training.checkpoint_every
        while self.samples < self.plan.stop and self.go_on and not self.stopped:
            batch = self._next(source, clock)
            epoch = self.samples // self.rows
            losses = self._step(batch, epoch)
            self.samples += self.plan.rows_per_step
            self.step += 1
            clock.images += self.plan.rows_per_step
            if self.step % self.config.training.log_every == 0:
                self._log_step(epoch, losses)
            self._observe(epoch, clock)
            saved = False
            if self._ends_epoch(epoch):
                saved = self._end_epoch(epoch, losses, clock)
                self._observe(epoch, clock)
                clock = Clock()
            wished = self.council.any_before(self.watchers.stop())
            if not saved and (wished or (every and self.step % every == 0)):
                self._save_within(epoch, losses, clock)
            self.stopped = wished and self.go_on and self.samples < self.plan.stop
        self.council.last_word()

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
        self.k = steepness(epoch, config.training.epochs, config.logistic)
        self.learning_rate = learning_rate(self.samples, total, world_size(), config.optimizer)
        self.adversaries.set_learning_rate(self.learning_rate)
        draw_it = functools.partial(self._draw, batch, self.k)
        losses = self.adversaries.step(*draw_it())
        if self.adversaries.average:
            self.adversaries.average.take(self.adversaries.segmentor)
        self.finiteness.took(Step(self.step + 1, batch.ids, draw_it), losses)
        return losses

    def _draw(self, batch: Batch, k: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch's images and masks as its epochs draw them, with S at this steepness."""
        self.adversaries.segmentor.logistic.set_k(k)
        draws = draw(self.config.training.seed, batch.epochs, batch.ids)
        return augment(
            to_device(batch.image, self.device),
            to_device(batch.mask, self.device),
            to_device(draws, self.device),
            self.config.augment,
        )

    def _log_step(self, epoch: int, losses: Losses) -> None:
        self.losses = {**self._read(losses)}
        values = self.losses | {
            "step": self.step,
            "epoch": epoch + 1,
            "learning_rate": self.adversaries.segmentor_optimizer.param_groups[0]["lr"],
            "k": float(self.adversaries.segmentor.logistic.k),
        }
        if self.log:
            self.log.write("step", self.samples, values)

    def _read(self, losses: Losses) -> dict[str, float]:
        """The losses' means over ranks, once it is known that the step was finite."""
        self.finiteness.settle()
        three = torch.stack([losses.critic_loss, losses.segmentor_loss, losses.dice_loss])
        means = (sum_over_ranks(three.double()) / world_size()).tolist()
        return dict(zip(LOSSES, means, strict=True))

    def _observe(self, epoch: int, clock: Clock) -> None:
        if rank() == 0:
            status = Status(
                epoch=epoch + 1,
                epochs=self.config.training.epochs,
                samples=self.samples,
                total=self.plan.stop,
                **self.losses,
                jaccard=self.jaccard,
                best_jaccard=self.best_jaccard,
                k=self.k,
                learning_rate=self.learning_rate,
                images_per_second=clock.images_per_second,
                validated=self.validated,
            )
            self.watchers.observe(status)

    def _ends_epoch(self, epoch: int) -> bool:
        return self.samples // self.rows > epoch or self.samples >= self.plan.stop

    def _end_epoch(self, epoch: int, losses: Losses, clock: Clock) -> bool:
        """Notes the epoch; where it is validated, saves it too. Returns whether it was saved."""
        self.losses = {**self._read(losses)}
        values: dict[str, Any] = self.losses | {"step": self.step, "epoch": epoch + 1}
        values |= clock.stop() | {"workers": world_size()}
        self.waited, self.worked = self.waited + clock.waiting, self.worked + clock.seconds
        values["run_wait_share"] = round(self.waited / self.worked, 5)
        values["k"] = float(self.adversaries.segmentor.logistic.k)
        last = self.samples >= self.plan.stop
        validate = (epoch + 1) % self.config.training.validate_every == 0 or last
        if validate:
            values |= self._validate()
        if self.log:
            self.log.write("epoch", self.samples, values)
        if validate:
            began = time.perf_counter()
            self._save(epoch_name(epoch + 1), epoch + 1, values)
            values["checkpoint_seconds"] = round(time.perf_counter() - began, 3)
            values["best_jaccard"] = self.best_jaccard
            self.go_on = self.watchers.report(values)
        elif self.log:
            self.log.flush()
        return validate

    def _save_within(self, epoch: int, losses: Losses, clock: Clock) -> None:
        values: dict[str, Any] = self._read(losses) | {"step": self.step, "epoch": epoch + 1}
        if clock.images:
            values["images_per_second"] = round(clock.images_per_second, 2)
        self._save(step_name(self.step), self.samples // self.rows, values)

    def _save(self, name: str, epochs: int, values: dict[str, Any]) -> None:
        progress: dict[str, Any] = {
            "jaccard": self.jaccard,
            "best_jaccard": self.best_jaccard,
            "losses": self.losses,
            "validated": self.validated,
            "step": self.step,
        }
        self.saver.save(name, self.adversaries, epochs, self.samples, values, progress)

    def _validate(self) -> dict[str, Any]:
        began = time.perf_counter()
        segmentor = self.adversaries.product
        average_running_statistics(segmentor)
        sweep = validate(segmentor, self.validation, self.config, self.device)
        threshold = sweep.best_threshold()
        scores = sweep.at(threshold)
        fixed = sweep.at(self.config.evaluation.threshold)
        self.jaccard = scores["jaccard"]
        self.best_jaccard = max(self.jaccard, self.best_jaccard or 0.0)
        self.validated += 1
        return {
            **scores,
            "threshold": threshold,
            "jaccard_at_config_threshold": fixed["jaccard"],
            "jaccard_curve": [round(float(j), 6) for j in sweep.curve()],
            "validation_seconds": round(time.perf_counter() - began, 3),
        }


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

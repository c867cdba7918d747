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
from segan.data.records.format import Samples
from segan.data.stream.augment import augment, sample_params
from segan.data.stream.batches import Batch, StreamSpec
from segan.evaluation.sweep import Sweep
from segan.inference.frames import segment_frames
from segan.networks.segmentor import Segmentor
from segan.runs.checkpoint import Checkpoint
from segan.runs.run import Run
from segan.training import state
from segan.training.checkpointing import (
    CheckpointManager,
    epoch_checkpoint_name,
    step_checkpoint_name,
)
from segan.training.distributed import (
    HostCollectives,
    all_reduce_sum,
    rank,
    sync_batch_norm_stats,
    world_size,
)
from segan.training.metrics_log import MetricsLog
from segan.training.nonfinite import NonFiniteGuard, StepRecord
from segan.training.precision import to_device
from segan.training.schedule import learning_rate, logistic_k
from segan.training.step import Losses, SegAN
from segan.training.timer import EpochTimer

LOSS_NAMES = ("critic_loss", "segmentor_loss", "dice_loss")


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is, for whoever watches it; `validated` counts the validations so far.

    The losses are those of the last step that was logged, None before the first.
    """

    epoch: int
    total_epochs: int
    samples: int
    total_samples: int
    critic_loss: float | None
    segmentor_loss: float | None
    dice_loss: float | None
    jaccard: float | None
    best_jaccard: float | None
    k: float
    learning_rate: float
    images_per_second: float
    num_validations: int


@dataclass
class Callbacks:
    """Who is told: `observe` of each step by rank 0, `report` of each validation by all.

    `report` says whether to go on, and must say the same to every rank. `stop`, asked on every
    rank after each step, says whether somebody wishes an end: one rank that hears of it is enough.
    """

    on_step_end: Callable[[TrainingProgress], None] = lambda status: None
    on_validation_end: Callable[[dict[str, Any]], bool] = lambda metrics: True
    should_stop: Callable[[], bool] = lambda: False


class Trainer:
    """One run from where it stands to its end."""

    def __init__(
        self,
        config: Config,
        run: Run,
        spec: StreamSpec,
        validation: Samples,
        device: torch.device,
        callbacks: Callbacks | None = None,
    ):
        """
        Args:
            plan: the rows that `batches` will bring, and the checkpoint that they begin at.
            validation: this rank's share of the validation frames.
            device: of the networks and the arithmetic.
        """
        self.config, self.run, self.spec = config, run, spec
        self.validation, self.device = validation, device
        self.callbacks = callbacks or Callbacks()
        self.rows_per_epoch = spec.sampler.num_rows
        self.samples = spec.start
        self.jaccard: float | None = None
        self.best_jaccard: float | None = None
        self.losses: dict[str, float | None] = dict.fromkeys(LOSS_NAMES)
        self.k = self.learning_rate = 0.0
        self.num_validations = self.step = 0
        self.data_wait_seconds = self.epoch_seconds = (
            0.0  # seconds of whole epochs since this process began
        )
        self.should_continue, self.stopped = True, False
        self.model, self.collectives = SegAN(config, device), HostCollectives()
        self.nonfinite_guard = NonFiniteGuard(self.model, self.collectives, str(run))
        if spec.checkpoint:
            self._resume_from(spec.checkpoint)
        self.metrics_log = MetricsLog(run, spec.start) if rank() == 0 else None
        self.checkpointer = CheckpointManager(config, run, spec, self.metrics_log)

    def _resume_from(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.samples == self.spec.start, "the stream must start where the state does"
        state.load_checkpoint(self.model, checkpoint, self.device)
        progress = checkpoint.info.progress
        assert progress is not None, "resolve_resume refuses checkpoints without progress"
        self.jaccard, self.best_jaccard = progress["jaccard"], progress["best_jaccard"]
        self.losses, self.num_validations = dict(progress["losses"]), progress["validated"]
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
            if self.metrics_log:
                self.metrics_log.close()

    def _train(self, batches: Iterator[Batch]) -> None:
        timer, checkpoint_every = EpochTimer(), self.config.training.checkpoint_every_steps
        while self.samples < self.spec.stop and self.should_continue and not self.stopped:
            batch = self._next_batch(batches, timer)
            epoch = self.samples // self.rows_per_epoch
            losses = self._train_step(batch, epoch)
            self.samples += self.spec.global_batch_size
            self.step += 1
            timer.images += self.spec.global_batch_size
            if self.step % self.config.training.log_every_steps == 0:
                self._log_step(epoch, losses)
            self._report_progress(epoch, timer)
            saved = False
            if self._is_epoch_end(epoch):
                saved = self._end_epoch(epoch, losses, timer)
                self._report_progress(epoch, timer)
                timer = EpochTimer()
            stop_requested = self.collectives.any_rank_async(self.callbacks.should_stop())
            if not saved and (
                stop_requested or (checkpoint_every and self.step % checkpoint_every == 0)
            ):
                self._save_mid_epoch(epoch, losses, timer)
            self.stopped = stop_requested and self.should_continue and self.samples < self.spec.stop
        self.collectives.wait()

    def _next_batch(self, batches: Iterator[Batch], timer: EpochTimer) -> Batch:
        started_at = time.perf_counter()
        batch = next(batches)
        timer.add_data_wait(time.perf_counter() - started_at)
        expected = self.samples + rank() * self.spec.batch_size
        assert batch.position == expected, f"row {batch.position} came where {expected} was due"
        assert len(batch.ids) == self.spec.batch_size, "ranks need equal batches"
        return batch

    def _train_step(self, batch: Batch, epoch: int) -> Losses:
        config, total_samples = self.config, self.rows_per_epoch * self.config.training.epochs
        self.k = logistic_k(epoch, config.training.epochs, config.logistic)
        self.learning_rate = learning_rate(
            self.samples, total_samples, world_size(), config.optimizer
        )
        self.model.set_learning_rate(self.learning_rate)
        augment_batch = functools.partial(self._augment_batch, batch, self.k)
        losses = self.model.train_step(*augment_batch())
        if self.model.ema:
            self.model.ema.update_parameters(self.model.segmentor)
        self.nonfinite_guard.record(StepRecord(self.step + 1, batch.ids, augment_batch), losses)
        return losses

    def _augment_batch(self, batch: Batch, k: float) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch's images and masks as its epochs draw them, with S at this steepness."""
        self.model.segmentor.logistic.set_k(k)
        params = sample_params(self.config.training.seed, batch.epochs, batch.ids)
        return augment(
            to_device(batch.image, self.device),
            to_device(batch.mask, self.device),
            to_device(params, self.device),
            self.config.augment,
        )

    def _log_step(self, epoch: int, losses: Losses) -> None:
        self.losses = {**self._reduce_losses(losses)}
        values = self.losses | {
            "step": self.step,
            "epoch": epoch + 1,
            "learning_rate": self.model.segmentor_optimizer.param_groups[0]["lr"],
            "k": float(self.model.segmentor.logistic.k),
        }
        if self.metrics_log:
            self.metrics_log.write("step", self.samples, values)

    def _reduce_losses(self, losses: Losses) -> dict[str, float]:
        """The losses' means over ranks, once it is known that the step was finite."""
        self.nonfinite_guard.flush()
        stacked = torch.stack([losses.critic_loss, losses.segmentor_loss, losses.dice_loss])
        means = (all_reduce_sum(stacked.double()) / world_size()).tolist()
        return dict(zip(LOSS_NAMES, means, strict=True))

    def _report_progress(self, epoch: int, timer: EpochTimer) -> None:
        if rank() == 0:
            progress = TrainingProgress(
                epoch=epoch + 1,
                total_epochs=self.config.training.epochs,
                samples=self.samples,
                total_samples=self.spec.stop,
                **self.losses,
                jaccard=self.jaccard,
                best_jaccard=self.best_jaccard,
                k=self.k,
                learning_rate=self.learning_rate,
                images_per_second=timer.images_per_second,
                num_validations=self.num_validations,
            )
            self.callbacks.on_step_end(progress)

    def _is_epoch_end(self, epoch: int) -> bool:
        return self.samples // self.rows_per_epoch > epoch or self.samples >= self.spec.stop

    def _end_epoch(self, epoch: int, losses: Losses, timer: EpochTimer) -> bool:
        """Notes the epoch; where it is validated, saves it too. Returns whether it was saved."""
        self.losses = {**self._reduce_losses(losses)}
        values: dict[str, Any] = self.losses | {"step": self.step, "epoch": epoch + 1}
        values |= timer.stop() | {"workers": world_size()}
        self.data_wait_seconds, self.epoch_seconds = (
            self.data_wait_seconds + timer.data_wait_seconds,
            self.epoch_seconds + timer.seconds,
        )
        values["run_wait_share"] = round(self.data_wait_seconds / self.epoch_seconds, 5)
        values["k"] = float(self.model.segmentor.logistic.k)
        last = self.samples >= self.spec.stop
        validate = (epoch + 1) % self.config.training.validate_every_epochs == 0 or last
        if validate:
            values |= self._validate()
        if self.metrics_log:
            self.metrics_log.write("epoch", self.samples, values)
        if validate:
            started_at = time.perf_counter()
            self._save_checkpoint(epoch_checkpoint_name(epoch + 1), epoch + 1, values)
            values["checkpoint_seconds"] = round(time.perf_counter() - started_at, 3)
            values["best_jaccard"] = self.best_jaccard
            self.should_continue = self.callbacks.on_validation_end(values)
        elif self.metrics_log:
            self.metrics_log.flush()
        return validate

    def _save_mid_epoch(self, epoch: int, losses: Losses, timer: EpochTimer) -> None:
        values: dict[str, Any] = self._reduce_losses(losses) | {
            "step": self.step,
            "epoch": epoch + 1,
        }
        if timer.images:
            values["images_per_second"] = round(timer.images_per_second, 2)
        self._save_checkpoint(
            step_checkpoint_name(self.step), self.samples // self.rows_per_epoch, values
        )

    def _save_checkpoint(self, name: str, epochs: int, values: dict[str, Any]) -> None:
        progress: dict[str, Any] = {
            "jaccard": self.jaccard,
            "best_jaccard": self.best_jaccard,
            "losses": self.losses,
            "validated": self.num_validations,
            "step": self.step,
        }
        self.checkpointer.save(name, self.model, epochs, self.samples, values, progress)

    def _validate(self) -> dict[str, Any]:
        started_at = time.perf_counter()
        segmentor = self.model.eval_segmentor
        sync_batch_norm_stats(segmentor)
        sweep = validate(segmentor, self.validation, self.config, self.device)
        threshold = sweep.best_threshold()
        scores = sweep.scores_at(threshold)
        fixed = sweep.scores_at(self.config.evaluation.threshold)
        self.jaccard = scores["jaccard"]
        self.best_jaccard = max(self.jaccard, self.best_jaccard or 0.0)
        self.num_validations += 1
        return {
            **scores,
            "threshold": threshold,
            "jaccard_at_config_threshold": fixed["jaccard"],
            "jaccard_curve": [round(float(j), 6) for j in sweep.curve()],
            "validation_seconds": round(time.perf_counter() - started_at, 3),
        }


def validate(segmentor: Segmentor, frames: Samples, config: Config, device: torch.device) -> Sweep:
    """The threshold sweep over the frames of all ranks; S is in training mode afterwards."""
    sweep = Sweep.empty(config.network.classes)
    segmentor.eval()
    for start in range(0, len(frames.ids), config.evaluation.batch_size):
        part = slice(start, start + config.evaluation.batch_size)
        image = torch.tensor(frames.image[part], device=device)
        probability = segment_frames(segmentor, image, config)
        sweep.update(probability, torch.tensor(frames.mask[part], device=device))
    segmentor.train()
    sums = all_reduce_sum(torch.from_numpy(sweep.sums).to(device))
    count = all_reduce_sum(torch.tensor(sweep.count, device=device))
    return Sweep(sums.cpu().numpy(), int(count))

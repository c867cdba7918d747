"""The training loop: takes batches, writes metrics and checkpoints.

It takes any iterable of batches and reports through callbacks, so the same loop runs in a debugger,
under Ray Train and in tests. A process group must be initialised
(`distributed.single_process_group` for one worker).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from segan.config import Config
from segan.data.records.frames import FrameShare
from segan.data.stream.augment import augment, sample_params
from segan.data.stream.batches import Batch
from segan.runs.checkpoint import Checkpoint
from segan.runs.run import Run
from segan.training.checkpointing import CheckpointManager, load_checkpoint
from segan.training.device import peak_memory
from segan.training.distributed import (
    HostCollectives,
    rank,
    sync_batch_norm_stats,
    world_size,
)
from segan.training.image_log import ImageLog
from segan.training.loss_sums import LossSums, Span
from segan.training.metrics import EpochMetrics, LoopState, LossValues, StepMetrics
from segan.training.nonfinite import NonFiniteGuard, StepRecord
from segan.training.precision import to_device
from segan.training.profile import profile_steps
from segan.training.resume import ResumePoint
from segan.training.schedule import learning_rates, logistic_k
from segan.training.step import SegAN
from segan.training.timer import EpochTimer, Stage, StageTimer
from segan.training.validation import validate
from segan.training.warm_start import load_initial_weights

if TYPE_CHECKING:
    from segan.training.metrics_log import MetricsLog


BuildModel = Callable[[Config, torch.device, StageTimer], SegAN]


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training, for display.

    Attributes:
        epoch: the current one, from 1.
        samples: images that all workers together have trained on, of `total_samples`.
        critic_loss, segmentor_loss, dice_loss: means over the last logged interval or, after its
            end, over the epoch; None before the first.
        jaccard, best_jaccard, saturated_fraction, wrong_saturated_fraction: on validation; None
            before the first.
        learning_rate, critic_learning_rate: of S and of C.
        images_per_second: of all workers in this epoch.
        num_validations: done so far.
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
    critic_learning_rate: float
    saturated_fraction: float | None
    wrong_saturated_fraction: float | None
    images_per_second: float
    num_validations: int


@dataclass
class Callbacks:
    """Functions that the trainer calls.

    Attributes:
        on_step_end: called by rank 0 after each step and each validation.
        on_validation_end: called by every rank; returns whether to continue, and must return the
            same on every rank.
        should_stop: called by every rank after each step; if any rank returns True, all of them
            save a checkpoint after the next step and stop.
    """

    on_step_end: Callable[[TrainingProgress], None] = lambda progress: None
    on_validation_end: Callable[[EpochMetrics], bool] = lambda metrics: True
    should_stop: Callable[[], bool] = lambda: False


class Trainer:
    """Trains one run from its resume point to its end.

    Attributes:
        samples: images that all workers together have trained on.
        stopped: whether the training ended early because a rank asked for it.
        should_continue: False once `on_validation_end` has ended the training.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        resume_point: ResumePoint,
        validation: FrameShare,
        device: torch.device,
        callbacks: Callbacks | None = None,
        num_profiled_steps: int = 0,
        build_model: BuildModel = SegAN,
    ):
        """
        Args:
            validation: this rank's share of the validation frames.
            device: of the networks.
            num_profiled_steps: see `segan.training.profile`.
            build_model: returns the networks with their optimisers.
        """
        self.config, self.spec = config, resume_point.spec
        self.validation, self.device = validation, device
        self.callbacks, self.num_profiled_steps = callbacks or Callbacks(), num_profiled_steps
        self.rows_per_epoch = self.spec.sampler.num_rows
        self.samples, self.state = self.spec.start, LoopState()
        self.k = self.learning_rate = self.critic_learning_rate = 0.0
        # Of all completed epochs since this process started.
        self.data_wait_seconds = self.epoch_seconds = 0.0
        self.should_continue, self.stopped = True, False
        self.stage_timer = StageTimer(device)
        self._first_step, self._all_reduce_seconds = 0, 0.0
        self.model = build_model(config, device, self.stage_timer)
        self.collectives = HostCollectives()
        self.nonfinite_guard = NonFiniteGuard(self.model, self.collectives, str(run))
        self._lacks_last_validation = self.spec.is_exhausted and not resume_point.is_finished
        if resume_point.checkpoint:
            self._load(resume_point.checkpoint)
        elif resume_point.initial_weights:
            with self.stage_timer.stage(Stage.RESTORE):
                load_initial_weights(self.model, resume_point.initial_weights)
        self.loss_sums = LossSums(device, self.state.loss_sums)
        self.metrics_log = (
            _open_metrics_log(run, self.spec.start, self.state.num_lines) if rank() == 0 else None
        )
        classes = config.network.classes
        self.image_log = ImageLog(run, validation.count, classes) if rank() == 0 else None
        self.checkpointer = CheckpointManager(
            config,
            run,
            self.spec.sampler.manifest,
            self.metrics_log,
            self.stage_timer,
            device,
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.samples == self.spec.start, "the stream must start at the checkpoint"
        with self.stage_timer.stage(Stage.RESTORE):
            load_checkpoint(self.model, checkpoint)
        self.state = LoopState.from_dict(checkpoint.info.progress or {})
        self._first_step = self.state.step

    def train(self, batches: Iterable[Batch]) -> None:
        """Trains on the batches of the spec; at the end of an epoch validates, logs and saves.

        Ends early, after a checkpoint, if `on_validation_end` returns False or, with `stopped`
        set, if `should_stop` returns True on any rank.

        Returns when the last checkpoint is written.

        Raises:
            NonFiniteError: a loss or gradient is not finite; on every rank.
            StorageError: a checkpoint could not be written; on rank 0.
        """
        with (
            contextlib.closing(self.collectives),
            self.checkpointer,
            profile_steps(
                self.num_profiled_steps, self.checkpointer.run, lambda: self.state.step
            ) as on_step_done,
        ):
            self._train(iter(batches), on_step_done)
            if not self.stopped:  # else it will go on, and has little time now
                self.checkpointer.finish()

    def _train(self, batches: Iterator[Batch], on_step_done: Callable[[], None]) -> None:
        timer, checkpoint_every = EpochTimer(), self.config.training.checkpoint_every_steps
        if self._lacks_last_validation:
            self._end_epoch(self.config.training.epochs - 1, timer)
            self._report_progress(self.config.training.epochs - 1, timer)
        while self.samples < self.spec.stop and self.should_continue and not self.stopped:
            self.checkpointer.raise_error()
            batch = self._next_batch(batches, timer)
            epoch = self.samples // self.rows_per_epoch
            self._train_step(batch, epoch)
            self.samples += self.spec.global_batch_size
            self.state.step += 1
            timer.images += self.spec.global_batch_size
            if self.state.step % self.config.training.log_every_steps == 0:
                self._log_step(epoch)
            self._report_progress(epoch, timer)
            saved = False
            if self._is_epoch_end(epoch):
                saved = self._end_epoch(epoch, timer)
                self._report_progress(epoch, timer)
                timer = EpochTimer()
            stop_requested = self.collectives.any_rank_async(self.callbacks.should_stop())
            is_due = checkpoint_every > 0 and self.state.step % checkpoint_every == 0
            if not saved and (stop_requested or is_due):
                self._save_mid_epoch(epoch, timer)
            on_step_done()
            self.stopped = stop_requested and self.should_continue and self.samples < self.spec.stop
        self.collectives.wait()

    def _next_batch(self, batches: Iterator[Batch], timer: EpochTimer) -> Batch:
        started_at = time.perf_counter()
        batch = next(batches)
        seconds = time.perf_counter() - started_at
        timer.add_data_wait(seconds)
        self.stage_timer.add(Stage.DATA_WAIT, seconds)
        expected = self.samples + rank() * self.spec.batch_size
        assert batch.position == expected, f"expected row {expected}, found {batch.position}"
        assert len(batch.ids) == self.spec.batch_size, "ranks need equal batches"
        return batch

    def _train_step(self, batch: Batch, epoch: int) -> None:
        config, total_samples = self.config, self.rows_per_epoch * self.config.training.epochs
        self.k = logistic_k(epoch, config.training.epochs, config.logistic)
        self.learning_rate, self.critic_learning_rate = learning_rates(
            self.samples, total_samples, world_size(), config.optimizer
        )
        self.model.set_learning_rates(self.learning_rate, self.critic_learning_rate)
        augment_batch = functools.partial(self._augment_batch, batch, self.k)
        losses = self.model.train_step(*augment_batch())
        if self.model.ema:
            self.model.ema.update_parameters(self.model.segmentor)
        record = StepRecord(self.state.step + 1, batch.ids, augment_batch)
        self.nonfinite_guard.record(record, losses)
        self.loss_sums.add(losses)

    def _augment_batch(self, batch: Batch, k: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Sets S's k, and returns the augmented images and masks of a batch."""
        self.model.segmentor.logistic.set_k(k)
        sampled = sample_params(self.config.training.seed, batch.epochs, batch.ids)
        with self.stage_timer.stage(Stage.HOST_TO_DEVICE):
            image, mask, params = (
                to_device(array, self.device) for array in (batch.image, batch.mask, sampled)
            )
        with self.stage_timer.stage(Stage.AUGMENTATION):
            return augment(image, mask, params, self.config.augment)

    def _mean_losses(self, span: Span) -> LossValues:
        """Returns the mean losses of a span, after the check that its last step was finite."""
        self.nonfinite_guard.flush()
        losses = self.loss_sums.mean(span)
        self.stage_timer.read_events()
        return losses

    def _log_step(self, epoch: int) -> None:
        self.state.losses = self._mean_losses(Span.INTERVAL)
        self.loss_sums.reset(Span.INTERVAL)
        metrics = StepMetrics(
            **self.state.losses.to_dict(),
            step=self.state.step,
            epoch=epoch + 1,
            learning_rate=self.learning_rate,
            critic_learning_rate=self.critic_learning_rate,
            k=float(self.model.segmentor.logistic.k),
        )
        if self.metrics_log:
            self.metrics_log.write(metrics, self.samples)

    def _report_progress(self, epoch: int, timer: EpochTimer) -> None:
        if rank() > 0:
            return
        progress = TrainingProgress(
            epoch=epoch + 1,
            total_epochs=self.config.training.epochs,
            samples=self.samples,
            total_samples=self.spec.stop,
            **asdict(self.state.losses),
            jaccard=self.state.jaccard,
            best_jaccard=self.state.best_jaccard,
            k=self.k,
            learning_rate=self.learning_rate,
            critic_learning_rate=self.critic_learning_rate,
            saturated_fraction=self.state.saturated_fraction,
            wrong_saturated_fraction=self.state.wrong_saturated_fraction,
            images_per_second=timer.images_per_second,
            num_validations=self.state.num_validations,
        )
        self.callbacks.on_step_end(progress)

    def _is_epoch_end(self, epoch: int) -> bool:
        return self.samples // self.rows_per_epoch > epoch or self.samples >= self.spec.stop

    def _end_epoch(self, epoch: int, timer: EpochTimer) -> bool:
        """Logs the epoch; validates and saves it if due. Returns whether it was saved."""
        self.state.losses = self._mean_losses(Span.EPOCH)
        self.loss_sums.reset(Span.EPOCH)
        timer.stop()
        self.data_wait_seconds += timer.data_wait_seconds
        self.epoch_seconds += timer.seconds
        metrics = EpochMetrics(
            **self.state.losses.to_dict(),
            step=self.state.step,
            epoch=epoch + 1,
            seconds=round(timer.seconds, 3),
            cpu_seconds=round(timer.cpu_seconds, 3),
            images_per_second=round(timer.images_per_second, 2),
            data_wait_fraction=round(timer.data_wait_seconds / timer.seconds, 5),
            run_data_wait_fraction=round(self.data_wait_seconds / self.epoch_seconds, 5),
            first_batch_ms=round(1000 * (timer.first_batch_seconds or 0.0), 2),
            workers=world_size(),
            k=float(self.model.segmentor.logistic.k),
            peak_memory_bytes=peak_memory(self.device),
        )
        is_last = self.samples >= self.spec.stop
        is_validated = (epoch + 1) % self.config.training.validate_every_epochs == 0 or is_last
        if is_validated:
            with self.stage_timer.stage(Stage.VALIDATION):
                scores = self._validate()
            metrics = replace(metrics, **scores)
        metrics = replace(metrics, stage_seconds=self._take_stage_seconds())
        if self.metrics_log:
            self.metrics_log.write(metrics, self.samples)
        if is_validated:
            started_at = time.perf_counter()
            self._save(metrics, epoch + 1)
            metrics = replace(
                metrics,
                checkpoint_seconds=round(time.perf_counter() - started_at, 3),
                best_jaccard=self.state.best_jaccard,
            )
            self.should_continue = self.callbacks.on_validation_end(metrics)
        else:
            self.checkpointer.flush_metrics()
        return is_validated

    def _take_stage_seconds(self) -> dict[str, float]:
        """Returns the seconds of each stage since the last call."""
        steps = self.state.step - self._first_step
        total = self.model.all_reduce_seconds_per_step() * steps
        self.stage_timer.add(Stage.ALL_REDUCE, max(0.0, total - self._all_reduce_seconds))
        self._all_reduce_seconds = total
        return self.stage_timer.take()

    def _save_mid_epoch(self, epoch: int, timer: EpochTimer) -> None:
        # An epoch that ends without a validation has just reported its mean, and no step follows.
        losses = self._mean_losses(Span.EPOCH) if timer.images else self.state.losses
        metrics = StepMetrics(
            **losses.to_dict(),
            step=self.state.step,
            epoch=epoch + 1,
            images_per_second=round(timer.images_per_second, 2) if timer.images else None,
        )
        self._save(metrics, self.samples // self.rows_per_epoch)

    def _save(self, metrics: EpochMetrics | StepMetrics, epochs: int) -> None:
        """Saves a checkpoint after so many completed epochs."""
        self.state.loss_sums = self.loss_sums.gather()
        self.checkpointer.save(metrics, self.model, self.state, epochs, self.samples)

    def _validate(self) -> dict[str, Any]:
        """Returns the fields of `EpochMetrics` that a validation fills."""
        segmentor = self.model.eval_segmentor
        sync_batch_norm_stats(segmentor)
        sweep = validate(segmentor, self.validation, self.config, self.device, self.image_log)
        threshold, labels = sweep.best_threshold(), self.spec.sampler.manifest.labels
        if self.image_log:
            self.image_log.write(self.samples, sweep.best_thresholds(), labels)
        by_class = sweep.class_metrics(labels) if len(labels) > 1 else {}
        scores = sweep.scores_at(sweep.best_thresholds())
        saturation = sweep.saturation_at(threshold)
        at_config_threshold = sweep.scores_at(self.config.evaluation.threshold)
        self.state.jaccard = scores["jaccard"]
        self.state.best_jaccard = max(scores["jaccard"], self.state.best_jaccard or 0.0)
        self.state.saturated_fraction = saturation["saturated_fraction"]
        self.state.wrong_saturated_fraction = saturation["wrong_saturated_fraction"]
        self.state.num_validations += 1
        return {
            **scores,
            **saturation,
            "threshold": threshold,
            "jaccard_at_config_threshold": at_config_threshold["jaccard"],
            "jaccard_curve": [round(float(j), 6) for j in sweep.curve()],
            **by_class,
        }


def _open_metrics_log(run: Run, samples: int, num_lines: int) -> MetricsLog:
    # TensorBoard is imported by the one process that writes the log, not by every other rank,
    # controller and trial of a cluster.
    from segan.training.metrics_log import MetricsLog

    return MetricsLog(run, samples, num_lines)

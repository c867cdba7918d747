"""Checkpoints of a training: when they are written, what they hold, and how they are loaded.

`CheckpointManager` names, writes and prunes a run's checkpoints. `checkpoint_tensors` says what
their files hold, and `load_checkpoint` restores a training from them. The format in storage, with
the manifest and its checksums, is that of `segan.runs.checkpoint`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.optim import Adam

from segan.config import Config
from segan.data.records.format import Manifest
from segan.errors import SeganError
from segan.runs.checkpoint import CRITIC_FILE, SEGMENTOR_FILE, Checkpoint, CheckpointInfo
from segan.runs.run import Run
from segan.training.background import BackgroundJob
from segan.training.distributed import (
    all_gather_batch_norm_stats,
    batch_norm_stats,
    max_replica_divergence,
    rank,
    unflatten,
    world_size,
)
from segan.training.metrics import EpochMetrics, LoopState, StepMetrics
from segan.training.step import SegAN
from segan.training.tensor_file import TensorFile, TensorSpec, load_tensors
from segan.training.timer import Stage, StageTimer

if TYPE_CHECKING:
    from segan.training.metrics_log import MetricsLog, MetricsUpdate

TRAINER_FILE = "trainer.safetensors"
# Tensors of TRAINER_FILE, beside the optimizers' and, with an EMA, S's own.
SEGMENTOR_STATS, EMA_STATS, EMA_NUM_UPDATES = "segmentor_stats", "ema_stats", "ema_num_updates"

Tensors = dict[str, Tensor]

logger = logging.getLogger(__name__)


class CheckpointManager:
    """Writes a run's checkpoints in the background, from the state of all ranks.

    A validated epoch is saved as epoch_00042, a step between two validations as step_0000420. Of
    them, the best, the latest and the one before it are kept.

    A context manager around the training: its end waits until the last checkpoint is written.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        manifest: Manifest,
        metrics_log: MetricsLog | None,
        stage_timer: StageTimer,
        device: torch.device,
    ):
        """
        Args:
            manifest: of the records.
            metrics_log: of rank 0; written to storage before each checkpoint.
            device: of the networks.
        """
        self.config, self.run, self.manifest, self.metrics_log = config, run, manifest, metrics_log
        self.stage_timer = stage_timer
        self._snapshot, self._job = Snapshot(device), BackgroundJob()

    def save(
        self,
        metrics: EpochMetrics | StepMetrics,
        model: SegAN,
        state: LoopState,
        epochs: int,
        samples: int,
    ) -> None:
        """Takes a snapshot and begins to write it; every rank calls it.

        Only the ranks' statistics are exchanged; then rank 0 copies its state to host memory, and
        all ranks go on. If the previous checkpoint is not written yet, rank 0 waits for it first.

        Args:
            metrics: of the validated epoch, or of the step.
            epochs: completed.
            samples: images that all workers together have trained on.

        Raises:
            SeganError: the previous checkpoint could not be written; on rank 0.
        """
        for network in (model.segmentor, model.critic, model.eval_segmentor):
            assert max_replica_divergence(network) == 0, "every rank must hold the same weights"
        stats = gather_batch_norm_stats(model)
        if rank() > 0:
            return
        assert self.metrics_log
        is_epoch = isinstance(metrics, EpochMetrics)
        name = f"epoch_{metrics.epoch:05d}" if is_epoch else f"step_{metrics.step:07d}"
        if self._job.is_running:
            logger.warning(
                "%s: the training waits with %s until %s is written", self.run, name, self._job.name
            )
        self._job.wait()
        with self.stage_timer.stage(Stage.SNAPSHOT):
            self._snapshot.take(checkpoint_tensors(model, stats))
        state.num_lines = self.metrics_log.num_lines
        info = CheckpointInfo(
            epochs=epochs,
            samples=samples,
            metrics=metrics.to_dict(),
            progress=state.to_dict(),
            fingerprint=self.manifest.fingerprint,
            frame={"width": self.manifest.width, "height": self.manifest.height},
            class_names=self.manifest.class_names,
            config=self.config.model_dump(mode="json"),
        )
        update = self.metrics_log.take()
        self._job.start(name, functools.partial(self._write, self.metrics_log, update, name, info))

    def _write(
        self, metrics_log: MetricsLog, update: MetricsUpdate, name: str, info: CheckpointInfo
    ) -> None:
        # In this order, a kill between the two leaves lines beyond the last checkpoint, which a
        # resumed run drops; in the other order lines would be missing.
        metrics_log.store(update, durable=True)
        with self.stage_timer.stage(Stage.UPLOAD):
            saved = self.run.save_checkpoint(name, self._snapshot.files(), info)
            self.run.prune_checkpoints(saved)

    def flush_metrics(self) -> None:
        """Begins to write the metrics without a checkpoint, unless something is being written."""
        if self.metrics_log and not self._job.is_running:
            update = self.metrics_log.take()
            store = functools.partial(self.metrics_log.store, update, durable=False)
            self._job.start("a flush of metrics", store)

    def raise_error(self) -> None:
        """Raises the error of a checkpoint that could not be written."""
        self._job.raise_error()

    def finish(self) -> None:
        """Waits for the last checkpoint of a run that has ended, and merges its metrics."""
        self._job.wait()
        if self.metrics_log:
            self.metrics_log.merge()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._job.wait()
            elif isinstance(error, Exception):  # not Ctrl-C, which ends at once
                try:
                    self._job.wait()
                except SeganError as another:
                    logger.warning("%s", another)
        finally:
            if self.metrics_log:
                self.metrics_log.close()
            if not self._job.is_running:
                self._snapshot.close()


class Snapshot:
    """The files of a checkpoint in host memory, which is allocated once for all checkpoints."""

    def __init__(self, device: torch.device):
        self._is_cuda = device.type == "cuda"
        self._files: dict[str, TensorFile] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copies the tensors of each file.

        From a GPU in the order of its stream: the host does not wait, and later steps of the
        stream do not change the copies.
        """
        for file, tensors in files.items():
            specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
            if file not in self._files or self._files[file].specs != specs:
                self._files[file] = TensorFile(specs, pin=self._is_cuda)
            self._files[file].fill(tensors)
        if self._is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def files(self) -> dict[str, list[memoryview]]:
        """The content of each file, valid until the next `take`; waits for a GPU's copies."""
        if self._copied:
            self._copied.synchronize()
        return {name: file.buffers() for name, file in self._files.items()}

    def close(self) -> None:
        """Gives the memory back."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def gather_batch_norm_stats(model: SegAN) -> Tensors:
    """Returns every rank's batch-norm statistics, [ranks, values], of S and of its EMA if any."""
    stats = {SEGMENTOR_STATS: all_gather_batch_norm_stats(model.segmentor)}
    if model.ema:
        stats[EMA_STATS] = all_gather_batch_norm_stats(model.ema.network)
    return stats


def checkpoint_tensors(model: SegAN, stats: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """Returns the tensors of each file of a checkpoint by name; most are the model's own.

    The segmentor's file is for inference: with an EMA it holds the averaged weights, and S itself
    is in the trainer's file. Its batch-norm statistics are the mean over the ranks, which differ
    within an epoch; each rank's own are in the trainer's file.

    There is no random state to save: order and augmentation are functions of (seed, epoch, sample
    id), and nothing else is random. Schedules are functions of the samples seen, which are in the
    checkpoint's info.

    Args:
        stats: from `gather_batch_norm_stats`.
    """
    segmentor: Tensors = dict(model.eval_segmentor.state_dict())
    means = {n: torch.empty_like(t) for n, t in batch_norm_stats(model.eval_segmentor).items()}
    if means:
        unflatten(_mean_over_ranks(stats[EMA_STATS if model.ema else SEGMENTOR_STATS]), means)
    trainer: Tensors = dict(stats)
    for prefix, parameter, optimizer in _optimized_parameters(model):
        trainer |= {
            f"{prefix}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()
        }
    if model.ema:
        trainer |= _prefixed_segmentor(model)
        trainer[EMA_NUM_UPDATES] = torch.tensor(model.ema.num_updates)
    return {
        SEGMENTOR_FILE: segmentor | means,
        CRITIC_FILE: dict(model.critic.state_dict()),
        TRAINER_FILE: trainer,
    }


def load_checkpoint(model: SegAN, checkpoint: Checkpoint) -> None:
    """Restores weights, Adam's moments and batch-norm statistics, in place.

    Each rank gets its own batch-norm statistics, or their mean for another number of ranks.

    Raises:
        CorruptedError: a file does not match its checksum, or is of another configuration.
    """
    load_tensors(checkpoint, SEGMENTOR_FILE, lambda _: model.eval_segmentor.state_dict())
    load_tensors(checkpoint, CRITIC_FILE, lambda _: model.critic.state_dict())
    places: Tensors = {}

    def find_places(specs: Mapping[str, TensorSpec]) -> Tensors:
        places.update(_trainer_places(model, specs))
        return places

    load_tensors(checkpoint, TRAINER_FILE, find_places)
    if model.ema:
        model.ema.num_updates = int(places[EMA_NUM_UPDATES])
        _load_rank_stats(places[EMA_STATS], model.ema.network)
    _load_rank_stats(places[SEGMENTOR_STATS], model.segmentor)


def _trainer_places(model: SegAN, specs: Mapping[str, TensorSpec]) -> Tensors:
    """Where the tensors of TRAINER_FILE are read to; creates the optimizers' state."""
    names = (SEGMENTOR_STATS, EMA_STATS) if model.ema else (SEGMENTOR_STATS,)
    places = {
        name: torch.empty(specs[name].shape, dtype=specs[name].dtype)
        for name in names
        if name in specs
    }
    for prefix, parameter, optimizer in _optimized_parameters(model):
        if f"{prefix}.step" not in specs:  # an optimizer without a step has no state
            continue
        # Fused Adam has its step on the device, and walks weights and moments in memory order, so
        # their layouts must agree.
        device = parameter.device if model.fused else torch.device("cpu")
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=specs[f"{prefix}.step"].dtype, device=device),
            "exp_avg": torch.empty_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.empty_like(parameter, requires_grad=False),
        }
        places |= {f"{prefix}.{key}": value for key, value in optimizer.state[parameter].items()}
    if model.ema:
        places |= _prefixed_segmentor(model) | {EMA_NUM_UPDATES: torch.tensor(0)}
    return places


def _optimized_parameters(model: SegAN) -> Iterator[tuple[str, nn.Parameter, Adam]]:
    """Yields each parameter with its optimizer and the prefix of the optimizer's tensors."""
    for label, network, optimizer in (
        ("segmentor_optimizer", model.segmentor, model.segmentor_optimizer),
        ("critic_optimizer", model.critic, model.critic_optimizer),
    ):
        for name, parameter in network.named_parameters():
            yield f"{label}.{name}", parameter, optimizer


def _prefixed_segmentor(model: SegAN) -> Tensors:
    return {f"segmentor.{name}": tensor for name, tensor in model.segmentor.state_dict().items()}


def _load_rank_stats(rank_stats: Tensor, network: nn.Module) -> None:
    local = rank_stats[rank()] if len(rank_stats) == world_size() else _mean_over_ranks(rank_stats)
    unflatten(local, batch_norm_stats(network))


def _mean_over_ranks(rank_stats: Tensor) -> Tensor:
    # In float64, in which the mean of equal rows is exactly that row.
    return rank_stats.double().mean(0)

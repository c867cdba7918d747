"""Checkpoints of a training: when they are written, what they hold, and how they are loaded.

`CheckpointManager` names, writes and prunes a run's checkpoints. `serialise_checkpoint` makes their
files and `load_checkpoint` restores a training from them. The format in storage, with the manifest
and its checksums, is that of `segan.runs.checkpoint`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from segan.config import Config
from segan.data.records.format import Manifest
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint, CheckpointInfo
from segan.runs.run import Run
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
from segan.training.timer import Stage, StageTimer

if TYPE_CHECKING:
    from segan.training.metrics_log import MetricsLog

CRITIC_FILE = "critic.safetensors"
TRAINER_FILE = "trainer.pt"
SEGMENTOR_STATS, EMA_STATS = "segmentor_stats", "ema_stats"  # keys of TRAINER_FILE


class CheckpointManager:
    """Writes a run's checkpoints, from the state of all ranks.

    A validated epoch is saved as epoch_00042, a step between two validations as step_0000420. Of
    them, the best, the latest and the one before it are kept.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        manifest: Manifest,
        metrics_log: MetricsLog | None,
        stage_timer: StageTimer,
    ):
        """
        Args:
            manifest: of the records.
            metrics_log: of rank 0; written to storage before each checkpoint.
        """
        self.config, self.run, self.manifest, self.metrics_log = config, run, manifest, metrics_log
        self.stage_timer = stage_timer

    def save(
        self,
        metrics: EpochMetrics | StepMetrics,
        model: SegAN,
        state: LoopState,
        epochs: int,
        samples: int,
    ) -> None:
        """Writes a checkpoint; every rank calls it, and returns when it is complete.

        Args:
            metrics: of the validated epoch, or of the step.
            epochs: completed.
            samples: images that all workers together have trained on.
        """
        for network in (model.segmentor, model.critic, model.eval_segmentor):
            assert max_replica_divergence(network) == 0, "every rank must hold the same weights"
        stats = gather_batch_norm_stats(model)
        if rank() == 0:
            assert self.metrics_log
            # In this order, a kill between the two leaves lines beyond the last checkpoint, which
            # a resumed run drops; in the other order lines would be missing.
            self.metrics_log.flush()
            is_epoch = isinstance(metrics, EpochMetrics)
            name = f"epoch_{metrics.epoch:05d}" if is_epoch else f"step_{metrics.step:07d}"
            info = CheckpointInfo(
                epochs=epochs,
                samples=samples,
                metrics=metrics.to_dict(),
                progress=state.to_dict(),
                fingerprint=self.manifest.fingerprint,
                frame={"width": self.manifest.width, "height": self.manifest.height},
                config=self.config.model_dump(mode="json"),
            )
            with self.stage_timer.stage(Stage.SNAPSHOT):
                files = serialise_checkpoint(model, stats)
            with self.stage_timer.stage(Stage.UPLOAD):
                saved = self.run.save_checkpoint(name, files, info)
                self.run.prune_checkpoints(saved)
        dist.barrier()


def gather_batch_norm_stats(model: SegAN) -> dict[str, Tensor]:
    """Returns every rank's batch-norm statistics, [ranks, values], of S and of its EMA if any."""
    stats = {SEGMENTOR_STATS: all_gather_batch_norm_stats(model.segmentor)}
    if model.ema:
        stats[EMA_STATS] = all_gather_batch_norm_stats(model.ema.network)
    return stats


def serialise_checkpoint(model: SegAN, stats: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Returns the files of a checkpoint by name.

    The segmentor's file is for inference: with an EMA it holds the averaged weights, and S itself
    is in the trainer's file. Its batch-norm statistics are the mean over the ranks, which differ
    within an epoch; each rank's own are in the trainer's file.

    There is no random state to save: order and augmentation are functions of (seed, epoch, sample
    id), and nothing else is random. Schedules are functions of the samples seen, which are in the
    checkpoint's info.

    Args:
        stats: from `gather_batch_norm_stats`.
    """
    ema = model.ema
    segmentor = _cpu_state_dict(model.eval_segmentor)
    segmentor_stats = {name: segmentor[name] for name in batch_norm_stats(model.eval_segmentor)}
    unflatten(_mean_over_ranks(stats[EMA_STATS if ema else SEGMENTOR_STATS]), segmentor_stats)
    trainer: dict[str, Any] = {
        "segmentor_optimizer": model.segmentor_optimizer.state_dict(),
        "critic_optimizer": model.critic_optimizer.state_dict(),
        **{name: rank_stats.cpu() for name, rank_stats in stats.items()},
    }
    if ema:
        trainer["segmentor"] = _cpu_state_dict(model.segmentor)
        trainer["ema_num_updates"] = ema.num_updates
    buffer = io.BytesIO()
    torch.save(trainer, buffer)
    return {
        SEGMENTOR_FILE: save_tensors(segmentor),
        CRITIC_FILE: save_tensors(_cpu_state_dict(model.critic)),
        TRAINER_FILE: buffer.getvalue(),
    }


def load_checkpoint(model: SegAN, checkpoint: Checkpoint, device: torch.device) -> None:
    """Restores weights, Adam's moments and batch-norm statistics, in place.

    Each rank gets its own batch-norm statistics, or their mean for another number of ranks.

    Raises:
        CorruptedError: a file does not match its checksum.
    """
    model.eval_segmentor.load_state_dict(load_tensors(checkpoint.read(SEGMENTOR_FILE)))
    model.critic.load_state_dict(load_tensors(checkpoint.read(CRITIC_FILE)))
    # weights_only: nothing but tensors and plain containers, so no code from storage runs.
    trainer: dict[str, Any] = torch.load(
        io.BytesIO(checkpoint.read(TRAINER_FILE)), map_location=device, weights_only=True
    )
    for name in ("segmentor_optimizer", "critic_optimizer"):
        for group in trainer[name]["param_groups"]:
            group["fused"] = model.fused  # depends on this device, not on the one that saved it
        optimizer = getattr(model, name)
        optimizer.load_state_dict(trainer[name])
        _match_moment_layout(optimizer)
    if ema := model.ema:
        model.segmentor.load_state_dict(trainer["segmentor"])
        ema.num_updates = trainer["ema_num_updates"]
        _load_rank_stats(trainer[EMA_STATS], ema.network)
    _load_rank_stats(trainer[SEGMENTOR_STATS], model.segmentor)


def _load_rank_stats(rank_stats: Tensor, network: nn.Module) -> None:
    local = rank_stats[rank()] if len(rank_stats) == world_size() else _mean_over_ranks(rank_stats)
    unflatten(local, batch_norm_stats(network))


def _match_moment_layout(optimizer: Optimizer) -> None:
    # Fused Adam walks weights and moments in memory order, so their layouts must agree.
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = torch.empty_like(parameter).copy_(moments[name])


def _mean_over_ranks(rank_stats: Tensor) -> Tensor:
    # In float64, in which the mean of equal rows is exactly that row.
    return rank_stats.double().mean(0)


def _cpu_state_dict(network: nn.Module) -> dict[str, Tensor]:
    # Contiguous, whatever memory format the device uses.
    return {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }

"""Everything that a training needs to go on, to bytes and back."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.training.distributed import (
    all_gather_batch_norm_stats,
    batch_norm_stats,
    rank,
    unflatten,
    world_size,
)
from segan.training.step import SegAN

CRITIC = "critic.safetensors"
TRAINER = "trainer.pt"
SEGMENTOR_STATS, EMA_STATS = "segmentor_stats", "ema_stats"


def gather_batch_norm_stats(model: SegAN) -> dict[str, Tensor]:
    """Every rank's running statistics, [ranks, values]: S's, and its average's if there is one."""
    stats = {SEGMENTOR_STATS: all_gather_batch_norm_stats(model.segmentor)}
    if model.ema:
        stats[EMA_STATS] = all_gather_batch_norm_stats(model.ema.network)
    return stats


def serialise_checkpoint(model: SegAN, stats: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The files of a checkpoint.

    No random state is among them: order and augmentation are functions of (seed, epoch, sample
    id), and nothing else draws. Schedules are functions of the samples seen, which the
    checkpoint's info holds. Where S's weights are averaged, the segmentor that is written for use
    is their average, and S itself is the trainer's.

    Args:
        statistics: as `gather_statistics` gives them. Within an epoch they differ between ranks:
            the segmentor that is written for use gets their mean, and each rank goes on with its
            own.
    """
    ema = model.ema
    segmentor = _cpu_state_dict(model.eval_segmentor)
    segmentor_stats = {name: segmentor[name] for name in batch_norm_stats(model.eval_segmentor)}
    unflatten(_mean_over_ranks(stats[EMA_STATS if ema else SEGMENTOR_STATS]), segmentor_stats)
    trainer: dict[str, Any] = {
        "segmentor_optimizer": model.segmentor_optimizer.state_dict(),
        "critic_optimizer": model.critic_optimizer.state_dict(),
        **{name: rows.cpu() for name, rows in stats.items()},
    }
    if ema:
        trainer |= {
            "segmentor": _cpu_state_dict(model.segmentor),
            "ema_num_updates": ema.num_updates,
        }
    buffer = io.BytesIO()
    torch.save(trainer, buffer)
    return {
        SEGMENTOR_FILE: save_tensors(segmentor),
        CRITIC: save_tensors(_cpu_state_dict(model.critic)),
        TRAINER: buffer.getvalue(),
    }


def load_checkpoint(model: SegAN, checkpoint: Checkpoint, device: torch.device) -> None:
    """Puts a checkpoint's weights and moments into place, verified against its manifest.

    Each rank gets the running statistics that it had; their mean where the number of ranks is
    another one.
    """
    model.eval_segmentor.load_state_dict(load_tensors(checkpoint.read(SEGMENTOR_FILE)))
    model.critic.load_state_dict(load_tensors(checkpoint.read(CRITIC)))
    # weights_only: tensors and plain containers alone, so nothing from storage is ever run.
    trainer: dict[str, Any] = torch.load(
        io.BytesIO(checkpoint.read(TRAINER)), map_location=device, weights_only=True
    )
    for name in ("segmentor_optimizer", "critic_optimizer"):
        for group in trainer[name]["param_groups"]:
            group["fused"] = model.fused  # a matter of this device, not of the one before
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
    # Fused Adam goes through weights and moments side by side, as they lie in memory.
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = torch.empty_like(parameter).copy_(moments[name])


def _mean_over_ranks(rank_stats: Tensor) -> Tensor:
    # In float64, where the mean of equal rows is that row and not its neighbour.
    return rank_stats.double().mean(0)


def _cpu_state_dict(network: nn.Module) -> dict[str, Tensor]:
    # In the order of their indices, whatever order the device has them in.
    return {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }

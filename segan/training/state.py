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

from segan.runs import SEGMENTOR, Checkpoint
from segan.training.distributed import (
    gather_running_statistics,
    rank,
    running_statistics,
    unflatten,
    world_size,
)
from segan.training.step import Adversaries

CRITIC = "critic.safetensors"
TRAINER = "trainer.pt"
OF_S, OF_AVERAGE = "running_statistics", "average_statistics"


def gather_statistics(adversaries: Adversaries) -> dict[str, Tensor]:
    """Every rank's running statistics, [ranks, values]: S's, and its average's if there is one."""
    found = {OF_S: gather_running_statistics(adversaries.segmentor)}
    if adversaries.average:
        found[OF_AVERAGE] = gather_running_statistics(adversaries.average.network)
    return found


def capture(adversaries: Adversaries, statistics: Mapping[str, Tensor]) -> dict[str, bytes]:
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
    average = adversaries.average
    segmentor = _copies(adversaries.product)
    own = {name: segmentor[name] for name in running_statistics(adversaries.product)}
    unflatten(_mean(statistics[OF_AVERAGE if average else OF_S]), own)
    trainer: dict[str, Any] = {
        "segmentor_optimizer": adversaries.segmentor_optimizer.state_dict(),
        "critic_optimizer": adversaries.critic_optimizer.state_dict(),
        **{name: rows.cpu() for name, rows in statistics.items()},
    }
    if average:
        trainer |= {"segmentor": _copies(adversaries.segmentor), "average_steps": average.steps}
    sink = io.BytesIO()
    torch.save(trainer, sink)
    return {
        SEGMENTOR: save_tensors(segmentor),
        CRITIC: save_tensors(_copies(adversaries.critic)),
        TRAINER: sink.getvalue(),
    }


def restore(adversaries: Adversaries, checkpoint: Checkpoint, device: torch.device) -> None:
    """Puts a checkpoint's weights and moments into place, verified against its manifest.

    Each rank gets the running statistics that it had; their mean where the number of ranks is
    another one.
    """
    adversaries.product.load_state_dict(load_tensors(checkpoint.read(SEGMENTOR)))
    adversaries.critic.load_state_dict(load_tensors(checkpoint.read(CRITIC)))
    # weights_only: tensors and plain containers alone, so nothing from storage is ever run.
    trainer: dict[str, Any] = torch.load(
        io.BytesIO(checkpoint.read(TRAINER)), map_location=device, weights_only=True
    )
    for name in ("segmentor_optimizer", "critic_optimizer"):
        for group in trainer[name]["param_groups"]:
            group["fused"] = adversaries.fused  # a matter of this device, not of the one before
        optimizer = getattr(adversaries, name)
        optimizer.load_state_dict(trainer[name])
        _lay_out_moments(optimizer)
    if average := adversaries.average:
        adversaries.segmentor.load_state_dict(trainer["segmentor"])
        average.steps = trainer["average_steps"]
        _take_own(trainer[OF_AVERAGE], average.network)
    _take_own(trainer[OF_S], adversaries.segmentor)


def _take_own(rows: Tensor, network: nn.Module) -> None:
    mine = rows[rank()] if len(rows) == world_size() else _mean(rows)
    unflatten(mine, running_statistics(network))


def _lay_out_moments(optimizer: Optimizer) -> None:
    # Fused Adam goes through weights and moments side by side, as they lie in memory.
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = torch.empty_like(parameter).copy_(moments[name])


def _mean(rows: Tensor) -> Tensor:
    # In float64, where the mean of equal rows is that row and not its neighbour.
    return rows.double().mean(0)


def _copies(network: nn.Module) -> dict[str, Tensor]:
    # In the order of their indices, whatever order the device has them in.
    return {
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in network.state_dict().items()
    }

"""Everything that a training needs to go on, to bytes and back."""

from __future__ import annotations

import io
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from segan.runs import SEGMENTOR, Checkpoint
from segan.training.step import Adversaries

CRITIC = "critic.safetensors"
TRAINER = "trainer.pt"


def capture(adversaries: Adversaries) -> dict[str, bytes]:
    """The files of a checkpoint.

    No random state is among them: order and augmentation are functions of (seed, epoch, sample
    id), and nothing else draws. Schedules are functions of the samples seen, which the
    checkpoint's info holds.
    """
    trainer = {
        "segmentor_optimizer": adversaries.segmentor_optimizer.state_dict(),
        "critic_optimizer": adversaries.critic_optimizer.state_dict(),
    }
    sink = io.BytesIO()
    torch.save(trainer, sink)
    return {
        SEGMENTOR: save_tensors(_contiguous(adversaries.segmentor)),
        CRITIC: save_tensors(_contiguous(adversaries.critic)),
        TRAINER: sink.getvalue(),
    }


def restore(adversaries: Adversaries, checkpoint: Checkpoint, device: torch.device) -> None:
    """Puts a checkpoint's weights and moments into place, verified against its manifest."""
    adversaries.segmentor.load_state_dict(load_tensors(checkpoint.read(SEGMENTOR)))
    adversaries.critic.load_state_dict(load_tensors(checkpoint.read(CRITIC)))
    # weights_only: tensors and plain containers alone, so nothing from storage is ever run.
    trainer: dict[str, Any] = torch.load(
        io.BytesIO(checkpoint.read(TRAINER)), map_location=device, weights_only=True
    )
    adversaries.segmentor_optimizer.load_state_dict(trainer["segmentor_optimizer"])
    adversaries.critic_optimizer.load_state_dict(trainer["critic_optimizer"])


def _contiguous(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}

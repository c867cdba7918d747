"""Exponential moving average of the segmentor's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from segan.networks.segmentor import Segmentor


class EMA:
    """An exponential moving average (EMA) of S: its weights and batch-norm statistics.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the random initial weights are
    soon forgotten. k is S's own. A step that is not finite is averaged too, but then no checkpoint
    follows. `torch.optim.swa_utils.AveragedModel` would copy S at the first update instead, and
    average k.

    Attributes:
        network: the averaged segmentor.
    """

    def __init__(self, segmentor: Segmentor, decay: float):
        """
        Args:
            decay: in (0, 1).
        """
        self.decay, self.num_updates = decay, 0
        self.network = copy.deepcopy(segmentor).requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, segmentor: Segmentor) -> None:
        """Averages in the segmentor's weights after a step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averaged, current = _float_tensors(self.network), _float_tensors(segmentor)
        torch._foreach_lerp_(averaged, current, 1 - decay)
        self.network.logistic.k.copy_(segmentor.logistic.k)


def _float_tensors(network: Segmentor) -> list[Tensor]:
    """Returns what is averaged: all but the batch norms' counts, which are not used."""
    # Unlike those of state_dict, a tensor that two modules share is among them once.
    tensors = (*network.parameters(), *network.buffers())
    return [tensor for tensor in tensors if tensor.is_floating_point()]

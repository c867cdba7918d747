"""S's weights averaged over its steps: another segmentor, which training takes no notice of."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from segan.networks.segmentor import Segmentor


class EMA:
    """An exponential moving average of S, running statistics and all.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), so that the first weights, which are
    random, are soon forgotten. The steepness is S's own. Steps whose numbers are not finite are
    averaged too, and nothing is kept after them.
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
        """Follows S after a step of it."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        averaged, current = _float_tensors(self.network), _float_tensors(segmentor)
        torch._foreach_lerp_(averaged, current, 1 - decay)
        self.network.logistic.k.copy_(segmentor.logistic.k)


def _float_tensors(network: Segmentor) -> list[Tensor]:
    """What is averaged: all but the counts, which norms with a momentum do not use."""
    return [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]

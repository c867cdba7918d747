"""The adaptive logistic, Eq. 3, which becomes steeper as k decreases during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AdaptiveLogistic(nn.Module):
    """f(z) = 1 / (1 + exp(-z / k)).

    k is a buffer, so it is saved with a network's weights.
    """

    k: Tensor

    def __init__(self, k: float = 1.0):
        super().__init__()
        self.register_buffer("k", torch.tensor(float(k)))

    def set_k(self, k: float) -> None:
        assert k > 0, f"k must be positive, found {k}"
        self.k.fill_(k)

    def forward(self, z: Tensor) -> Tensor:
        """Maps logits of any shape to probabilities in [0, 1] of the same shape."""
        # In k's precision or higher: bfloat16 has no number between 0.996 and 1.
        return torch.sigmoid(z.to(torch.promote_types(z.dtype, self.k.dtype)) / self.k)

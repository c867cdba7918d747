"""Mean losses since the last logged step and over the epoch so far."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
import torch.distributed as dist

from segan.training.distributed import all_reduce_sum, rank, world_size
from segan.training.metrics import LossValues
from segan.training.step import LOSS_NAMES, Losses

SumRows = list[list[list[float]]]  # by rank, Span, and loss with the number of steps at the end


class Span(IntEnum):
    """The steps that a mean is taken over."""

    INTERVAL = 0  # since the last logged step
    EPOCH = 1  # since the epoch began


class LossSums:
    """This rank's sums of the losses over each span.

    They are float64 on the device, so that adding a step waits for nothing. A checkpoint keeps each
    rank's own: with their total on one rank, a resumed run would add in another order, and its
    means would differ in the last bits.
    """

    def __init__(self, device: torch.device, saved: Sequence[list[list[float]]] = ()):
        """
        Args:
            saved: the rows of `gather`, of any number of ranks; () starts at 0.
        """
        rows = torch.tensor(saved, dtype=torch.float64, device=device)
        shape = (len(Span), len(LOSS_NAMES) + 1)
        if len(saved) == world_size():
            self._sums = rows[rank()].clone()
        elif saved and rank() == 0:
            self._sums = rows.sum(0)
        else:
            self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self._one = torch.ones(1, dtype=torch.float64, device=device)

    def add(self, losses: Losses) -> None:
        """Adds the losses of a step."""
        self._sums += torch.cat([losses.stack().double(), self._one])

    def mean(self, span: Span) -> LossValues:
        """The means over the ranks and their steps, None without a step.

        Every rank calls it, and waits for its device.
        """
        *totals, steps = all_reduce_sum(self._sums[span]).tolist()
        if not steps:
            return LossValues()
        means = (total / steps for total in totals)
        return LossValues(**dict(zip(LOSS_NAMES, means, strict=True)))

    def reset(self, span: Span) -> None:
        """Begins a span."""
        self._sums[span] = 0

    def gather(self) -> SumRows:
        """The sums of every rank, to be saved; every rank calls it, and waits for its device."""
        rows = [torch.empty_like(self._sums) for _ in range(world_size())]
        dist.all_gather(rows, self._sums)
        saved: SumRows = torch.stack(rows).tolist()
        return saved

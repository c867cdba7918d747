"""The end of a training whose numbers are no longer finite, with a word on where that began."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segan.errors import NotFiniteError
from segan.training.distributed import Council, rank
from segan.training.step import Adversaries, Losses

NETWORKS = ("critic", "segmentor")


@dataclass
class Step:
    """A step that was taken, kept until its numbers are known.

    Attributes:
        number: of the step, from 1.
        ids: of this rank's images.
        again: gives its images and masks as they were drawn, to look for what went wrong.
    """

    number: int
    ids: list[str]
    again: Callable[[], tuple[Tensor, Tensor]]


@dataclass
class _Taken:
    step: Step
    numbers: Tensor  # on the host: not_finite of both networks, then the three losses
    ready: torch.cuda.Event | None = field(default=None)


class Finiteness:
    """Raises on every rank at the same step where a loss or gradient of any was not finite.

    The weights are safe already: `Adversaries` leaves them alone from that step on, on the device
    itself. So the host asks a step late, when the answer is there, and waits for nothing.
    """

    def __init__(self, adversaries: Adversaries, council: Council, run: str):
        """
        Args:
            run: its URI, for the message.
        """
        self._adversaries, self._council, self._run = adversaries, council, run
        self._last: _Taken | None = None

    def took(self, step: Step, losses: Losses) -> None:
        """Notes a step, and looks at the one before it.

        Raises:
            NotFiniteError: the one before it was not finite.
        """
        before, self._last = self._last, self._take(step, losses)
        self._look(before)

    def settle(self) -> None:
        """Looks at the last step too, which waits for the device: before anything is kept."""
        last, self._last = self._last, None
        self._look(last)

    def _take(self, step: Step, losses: Losses) -> _Taken:
        three = torch.stack([losses.critic_loss, losses.segmentor_loss, losses.dice_loss])
        numbers = torch.cat([self._adversaries.not_finite.double(), three.double()])
        if numbers.device.type != "cuda":
            return _Taken(step, numbers)
        copy = numbers.to("cpu", non_blocking=True)  # into pinned memory, so it is not waited for
        ready = torch.cuda.Event()
        ready.record()
        return _Taken(step, copy, ready)

    def _look(self, taken: _Taken | None) -> None:
        if taken is None:
            return
        if taken.ready:
            taken.ready.synchronize()
        found = taken.numbers.tolist()
        if not any(found[:2]):
            return
        networks = [name for name, bad in zip(NETWORKS, found[:2], strict=True) if bad]
        losses = dict(zip(("critic_loss", "segmentor_loss", "dice_loss"), found[2:], strict=True))
        said = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        fine = self._adversaries.finite_here(*taken.step.again())
        here = f"rank {rank()} ({said}) with the images {', '.join(taken.step.ids)}"
        everywhere = self._council.gather((fine, here))
        # Where each rank is finite for itself, their sum was not.
        guilty = [one for fine, one in everywhere if not fine] or [one for _, one in everywhere]
        raise NotFiniteError(
            f"{self._run}: a loss or gradient of {' and '.join(networks)} at step "
            f"{taken.step.number} is not finite, on {'; '.join(guilty)}; it touched no weight and "
            "the last checkpoint is kept. Try a smaller optimizer.learning_rate"
        )

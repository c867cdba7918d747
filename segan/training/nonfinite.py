"""The end of a training whose numbers are no longer finite, with a word on where that began."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segan.errors import NonFiniteError
from segan.training.distributed import HostCollectives, rank
from segan.training.step import Losses, SegAN

NETWORKS = ("critic", "segmentor")


@dataclass
class StepRecord:
    """A step that was taken, kept until its numbers are known.

    Attributes:
        number: of the step, from 1.
        ids: of this rank's images.
        again: gives its images and masks as they were drawn, to look for what went wrong.
    """

    number: int
    ids: list[str]
    replay_batch: Callable[[], tuple[Tensor, Tensor]]


@dataclass
class _PendingCheck:
    step: StepRecord
    values: Tensor  # on the host: not_finite of both networks, then the three losses
    event: torch.cuda.Event | None = field(default=None)


class NonFiniteGuard:
    """Raises on every rank at the same step where a loss or gradient of any was not finite.

    The weights are safe already: `Adversaries` leaves them alone from that step on, on the device
    itself. So the host asks a step late, when the answer is there, and waits for nothing.
    """

    def __init__(self, model: SegAN, collectives: HostCollectives, run_uri: str):
        """
        Args:
            run: its URI, for the message.
        """
        self._model, self._collectives, self._run_uri = model, collectives, run_uri
        self._pending: _PendingCheck | None = None

    def record(self, step: StepRecord, losses: Losses) -> None:
        """Notes a step, and looks at the one before it.

        Raises:
            NotFiniteError: the one before it was not finite.
        """
        previous, self._pending = self._pending, self._start_check(step, losses)
        self._raise_if_nonfinite(previous)

    def flush(self) -> None:
        """Looks at the last step too, which waits for the device: before anything is kept."""
        pending, self._pending = self._pending, None
        self._raise_if_nonfinite(pending)

    def _start_check(self, step: StepRecord, losses: Losses) -> _PendingCheck:
        stacked = torch.stack([losses.critic_loss, losses.segmentor_loss, losses.dice_loss])
        values = torch.cat([self._model.found_inf.double(), stacked.double()])
        if values.device.type != "cuda":
            return _PendingCheck(step, values)
        host_values = values.to(
            "cpu", non_blocking=True
        )  # into pinned memory, so it is not waited for
        event = torch.cuda.Event()
        event.record()
        return _PendingCheck(step, host_values, event)

    def _raise_if_nonfinite(self, check: _PendingCheck | None) -> None:
        if check is None:
            return
        if check.event:
            check.event.synchronize()
        values = check.values.tolist()
        if not any(values[:2]):
            return
        networks = [name for name, bad in zip(NETWORKS, values[:2], strict=True) if bad]
        losses = dict(zip(("critic_loss", "segmentor_loss", "dice_loss"), values[2:], strict=True))
        loss_text = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        is_finite = self._model.is_finite_on_this_rank(*check.step.replay_batch())
        description = f"rank {rank()} ({loss_text}) with the images {', '.join(check.step.ids)}"
        reports = self._collectives.all_gather_object((is_finite, description))
        # Where each rank is finite for itself, their sum was not.
        failing_ranks = [one for fine, one in reports if not fine] or [one for _, one in reports]
        raise NonFiniteError(
            f"{self._run_uri}: a loss or gradient of {' and '.join(networks)} at step "
            f"{check.step.number} is not finite, on {'; '.join(failing_ranks)}; it touched "
            f"no weight and "
            "the last checkpoint is kept. Try a smaller optimizer.learning_rate"
        )

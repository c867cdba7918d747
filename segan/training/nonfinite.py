"""Stops all ranks when a loss or gradient is NaN or infinite, and names the rank and its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segan.errors import NonFiniteError
from segan.training.distributed import HostCollectives, rank
from segan.training.step import LOSS_NAMES, Losses, SegAN

NETWORKS = ("critic", "segmentor")


@dataclass
class StepRecord:
    """A step whose losses are not yet known on the host.

    Attributes:
        number: of the step, from 1.
        ids: of this rank's images.
        replay_batch: returns the step's augmented images and masks again, to find the cause.
    """

    number: int
    ids: list[str]
    replay_batch: Callable[[], tuple[Tensor, Tensor]]


@dataclass
class _PendingCheck:
    step: StepRecord
    values: Tensor  # on the host: found_inf of both networks, then the three losses
    event: torch.cuda.Event | None = None  # after the copy of `values` from a GPU


class NonFiniteGuard:
    """Raises on every rank, at the same step, if a loss or gradient of any rank is not finite.

    Weights need no protection: on the device itself, `SegAN` skips every update from that step on.
    So the host reads the values one step late, when they have arrived, and never waits for a GPU.
    """

    def __init__(self, model: SegAN, collectives: HostCollectives, run_uri: str):
        self._model, self._collectives, self._run_uri = model, collectives, run_uri
        self._pending: _PendingCheck | None = None

    def record(self, step: StepRecord, losses: Losses) -> None:
        """Starts the check of a step and finishes that of the previous one.

        Raises:
            NonFiniteError: the previous step was not finite.
        """
        previous, self._pending = self._pending, self._start_check(step, losses)
        self._raise_if_nonfinite(previous)

    def flush(self) -> None:
        """Finishes the check of the last step, which waits for the device.

        Raises:
            NonFiniteError: the last step was not finite.
        """
        pending, self._pending = self._pending, None
        self._raise_if_nonfinite(pending)

    def _start_check(self, step: StepRecord, losses: Losses) -> _PendingCheck:
        values = torch.cat([self._model.found_inf.double(), losses.stack().double()])
        if values.device.type != "cuda":
            return _PendingCheck(step, values)
        # A copy to pinned memory, so the host does not wait for it.
        host_values = values.to("cpu", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return _PendingCheck(step, host_values, event)

    def _raise_if_nonfinite(self, check: _PendingCheck | None) -> None:
        if check is None:
            return
        if check.event:
            check.event.synchronize()
        found_inf, losses = check.values[:2].tolist(), check.values[2:].tolist()
        if not any(found_inf):
            return
        networks = [name for name, found in zip(NETWORKS, found_inf, strict=True) if found]
        is_finite = self._model.is_finite_on_this_rank(*check.step.replay_batch())
        loss_text = ", ".join(f"{n} {v:g}" for n, v in zip(LOSS_NAMES, losses, strict=True))
        description = f"rank {rank()} ({loss_text}) with the images {', '.join(check.step.ids)}"
        reports = self._collectives.all_gather_object((is_finite, description))
        # If every rank is finite by itself, their sum is not, and all ranks are named.
        failing_ranks = [text for finite, text in reports if not finite]
        failing_ranks = failing_ranks or [text for _, text in reports]
        raise NonFiniteError(
            f"{self._run_uri}: a loss or gradient of {' and '.join(networks)} at step "
            f"{check.step.number} is not finite, on {'; '.join(failing_ranks)}; no weight was "
            "changed and the last checkpoint is kept. Try a smaller optimizer.learning_rate"
        )

"""TensorBoard's events of a training, which goes on without them where their disk is full."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class EventWriter:
    """Writes scalars to a temporary folder; after an error of the disk, nothing more.

    Args:
        purge_step: TensorBoard drops earlier events from this step on.
    """

    def __init__(self, purge_step: int):
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._writer: SummaryWriter | None = None
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="segan-tensorboard-")
            self._writer = SummaryWriter(self._folder.name, purge_step=purge_step)
        except OSError as error:
            self._give_up(error)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if self._writer:
            self._attempt(self._writer.add_scalar, name, value, step)

    def flush(self) -> None:
        if self._writer:
            self._attempt(self._writer.flush)

    def files(self) -> Iterator[Path]:
        """The files that were written."""
        if self._folder:
            yield from Path(self._folder.name).iterdir()

    def close(self) -> None:
        """Ends TensorBoard's thread and deletes the folder."""
        if self._writer:
            self._attempt(self._writer.close)
        if self._folder:
            self._folder.cleanup()

    def _attempt(self, method: Callable[..., Any], *arguments: Any) -> None:
        try:
            method(*arguments)
        except OSError as error:  # of its thread, perhaps at an earlier call
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        logger.warning(
            "%s: %s; the training goes on without events for TensorBoard; free some space there, "
            "or set TMPDIR to another folder",
            tempfile.gettempdir(),
            error.strerror or error,
        )

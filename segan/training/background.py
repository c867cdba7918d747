"""One job at a time in a thread, while the training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundJob:
    """Runs jobs in a thread, one after another; its error is raised where it is waited for.

    The thread is a daemon: a process that is told to end at once does not wait for an upload.

    Attributes:
        name: of the last job.
    """

    def __init__(self) -> None:
        self.name = ""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, name: str, job: Callable[[], object]) -> None:
        """Starts a job; the previous one must have been waited for."""
        assert not self.is_running, f"{name} must wait for {self.name}"
        self.raise_error()

        def run() -> None:
            try:
                job()
            except BaseException as error:
                self._error = error

        self.name = name
        self._thread = threading.Thread(target=run, name=f"writing {name}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the job, if one is running, and raises its error."""
        if self._thread is not None:
            self._thread.join()
        self.raise_error()

    def raise_error(self) -> None:
        """Raises the error of a job that has failed, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

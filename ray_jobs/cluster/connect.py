"""Joining a Ray cluster, and reading its errors."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from segan.errors import SeganError


def connect(debug: bool = False) -> None:
    """Joins the cluster of RAY_ADDRESS or of the job, or starts one on this machine.

    Args:
        debug: lets the output of Ray's processes through to this terminal.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    level = logging.INFO if debug else logging.ERROR
    if os.environ.get("RAY_ADDRESS") and not debug:
        # This process's own core, which warns of what Ray's libraries do; the log files keep it.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not os.environ.get("RAY_ADDRESS"):
        ensure_auth_token()
    ray.init(log_to_driver=debug, logging_level=level)
    # `ray job stop` is then a Ctrl-C; Ray's own handler ends the process where it stands.
    signal.signal(signal.SIGTERM, _handle_sigterm)
    if not debug:
        # Ray's own log files keep everything; its loggers are set up by these imports.
        for name in ("ray.data", "ray.train"):
            importlib.import_module(name)
            logging.getLogger(name).setLevel(logging.ERROR)


def ensure_auth_token() -> None:
    """The token of Rays that are started here, where there is none yet, for nobody else to read.

    Ray would make it itself, and leave it to the umask who may read it.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {*os.environ}:
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))


def _handle_sigterm(_: int, frame: Any) -> None:
    """What Ctrl-C would do now: while Ray Train is at work, its own orderly way."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # behind nohup Ctrl-C is ignored
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


@contextlib.contextmanager
def preserve_sigint_handler() -> Iterator[None]:
    """Ray Train takes an interrupt as an order to abort, and then ends the process as if all were
    well; here it stays an interrupt, and the handler goes with the block."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def unwrap_user_error(error: BaseException) -> BaseException:
    """The SeganError in what Ray wrapped it in, a worker's or a read task's; else the error."""
    errors = [error]
    for current in errors:
        if isinstance(current, SeganError) and not isinstance(current, RayError):
            return current
        causes = [
            *getattr(current, "worker_failures", {}).values(),
            getattr(current, "cause", None),
        ]
        errors += [c for c in (*causes, current.__cause__) if isinstance(c, BaseException)]
    return error

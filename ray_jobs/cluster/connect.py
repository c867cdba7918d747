"""Connects to a Ray cluster and unwraps its errors."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import secrets
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from ray_jobs import SINGLE_NODE_ENV
from ray_jobs.cluster.address import check_ray_address
from ray_jobs.cluster.folders import ray_folder
from ray_jobs.cluster.ray_internals import RECORDED_ADDRESS
from segan.errors import SeganError, UsageError
from segan.storage.lease import RAY_JOB_VARIABLE

# What a cluster needs of this project.
PACKAGES = ("segan", "ray_jobs")


def connect(debug: bool = False) -> None:
    """Connects to the cluster of RAY_ADDRESS or of the current job, or starts a local one.

    Its processes run this process's code: a cluster that RAY_ADDRESS names gets a copy of the
    packages, whatever its nodes have installed, and needs only their dependencies. Does nothing if
    this process is connected already.

    Args:
        debug: print the output of Ray's processes and its warnings on this terminal.

    Raises:
        UsageError: there is no Ray cluster at RAY_ADDRESS, or one of another version.
        SeganError: the cluster there rejects this process.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "")
    check_ray_address(address)
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    if address:
        if not debug:
            # Warnings of this process's core worker about Ray's own libraries.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    else:
        ensure_auth_token()
    local_options = _local_options(address)
    if local_options:
        for name, value in SINGLE_NODE_ENV.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(
            runtime_env=_code_environment(address),
            log_to_driver=debug,
            logging_level=logging.INFO if debug else logging.ERROR,
            **local_options,
        )
    except (RayError, OSError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise restate_connection_error(error, address) from error
    # Ray's own handler ends the process at once; `ray job stop` has to work like Ctrl-C.
    signal.signal(signal.SIGTERM, _handle_sigterm)
    if not debug:
        # These imports configure Ray's loggers. Ray's log files still get every message.
        for name in ("ray.data", "ray.train"):
            importlib.import_module(name)
            logging.getLogger(name).setLevel(logging.ERROR)


def _local_options(address: str) -> dict[str, str]:
    """Options of `ray.init` for a Ray that it starts; none if there is a cluster to join.

    Its folder is one that other users cannot enter; in Ray's own, /tmp/ray, they can write.
    """
    if address not in ("", "local") or (not address and RECORDED_ADDRESS.load()()):
        return {}
    return {"address": "local", "_temp_dir": ray_folder()}


def _code_environment(address: str) -> dict[str, Any]:
    """The runtime environment that brings the packages to a cluster of other machines.

    The processes of a Ray that this process starts inherit its import path, and a submitted job
    has the code that it was submitted with.
    """
    if address in ("", "local") or RAY_JOB_VARIABLE in os.environ:
        return {}
    packages = [Path(next(iter(importlib.import_module(name).__path__))) for name in PACKAGES]
    return {
        "py_modules": [str(package) for package in packages],
        "excludes": ["__pycache__"],
    }


def restate_connection_error(error: Exception, address: str) -> SeganError:
    """Ray's error on joining a cluster, which may have several lines, in one line."""
    versions = re.findall(r"^\s*(?:Ray|Python): (\S+)$", str(error), flags=re.MULTILINE)
    if len(versions) == 4:
        cluster_ray, cluster_python, ray_version, python = versions
        return UsageError(
            f"RAY_ADDRESS={address}: the cluster runs Ray {cluster_ray} on Python "
            f"{cluster_python}, this process Ray {ray_version} on Python {python}; both must be "
            "the same, so install the cluster's versions here, or use `ray job submit`"
        )
    lines = (str(error).strip() or type(error).__name__).splitlines()
    # Ray Client's server sends a traceback, whose last line has the reason.
    reason = lines[-1 if any(line.startswith("Traceback") for line in lines) else 0]
    return SeganError(f"RAY_ADDRESS={address}: {reason}; `segan doctor` checks the cluster")


def ensure_auth_token() -> None:
    """Creates ~/.ray/auth_token for clusters that this machine starts, if no token is configured.

    Only the user can read the file. Ray would create it with the permissions of the umask. Without
    a home folder, as in some containers, the token lies beside the folder of the user's Ray.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {*os.environ}:
        return
    try:
        _create_token(Path.home() / ".ray" / "auth_token")
    except (OSError, RuntimeError):
        path = Path(ray_folder()).with_name("auth_token")
        try:
            _create_token(path)
        except OSError as error:
            raise SeganError(f"{path}: {error.strerror}; set RAY_AUTH_TOKEN_PATH") from None
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _create_token(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))


def _handle_sigterm(_: int, frame: Any) -> None:
    """Calls the current SIGINT handler: during a training, Ray Train's graceful abort."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # SIGINT is ignored, as under nohup
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


@contextlib.contextmanager
def preserve_sigint_handler() -> Iterator[None]:
    """Keeps an interrupt a KeyboardInterrupt while Ray Train runs in the block.

    Ray Train installs a SIGINT handler that aborts the run and then exits with code 0. The previous
    handler is restored after the block.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def unwrap_user_error(error: BaseException) -> BaseException:
    """The SeganError among the causes of an error of Ray, or the error itself if there is none."""
    errors = [error]
    for current in errors:
        if isinstance(current, SeganError) and not isinstance(current, RayError):
            return current
        causes = [
            *getattr(current, "worker_failures", {}).values(),
            getattr(current, "controller_failure", None),
            getattr(current, "cause", None),
            current.__cause__,
        ]
        errors += [cause for cause in causes if isinstance(cause, BaseException)]
    return error

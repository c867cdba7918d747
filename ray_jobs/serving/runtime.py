"""Ray Serve while a command runs, on a cluster or on a local Ray that the command starts."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import ray
from ray import serve

from ray_jobs.cluster.connect import ensure_auth_token
from ray_jobs.cluster.folders import temporary_ray_folder
from segan.errors import SeganError, UsageError

APP_NAME = "segan"


@contextlib.contextmanager
def local_ray(debug: bool) -> Iterator[None]:
    """Runs Ray on this machine's loopback address while the block runs."""
    level = logging.INFO if debug else logging.ERROR
    ensure_auth_token()
    with temporary_ray_folder() as folder:
        before = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=debug,
            logging_level=level,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        # Ray's own handler aborts the process with a stack dump.
        signal.signal(signal.SIGTERM, before)
        try:
            yield
        finally:
            ray.shutdown()


def check_port(host: str, port: int) -> None:
    """Raises SeganError if the port cannot be opened; Ray Serve would retry for a minute."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SeganError(
                f"{host}:{port}: cannot listen ({reason}); choose another --port"
            ) from None


def gpus_per_replica() -> int:
    """1 if the cluster has GPUs, else 0."""
    return min(1, int(ray.cluster_resources().get("GPU", 0)))


@contextlib.contextmanager
def serve_app(
    application: serve.Application, host: str, port: int, request_timeout_s: float, debug: bool
) -> Iterator[None]:
    """Serves the application at `host` and `port` while the block runs.

    Args:
        request_timeout_s: a request that takes longer gets status 408.

    Raises:
        UsageError: Ray Serve runs on this cluster already, with other options.
    """
    if serve.status().proxies:
        raise UsageError(
            "Ray Serve runs on this cluster already; deploy ray_jobs.serve:build to it "
            "(docs/serving.md), or use --local"
        )
    if not debug:
        # Ray Serve's log files still get every message.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
    options = {"host": host, "port": port, "request_timeout_s": request_timeout_s}
    logging_config = {"enable_access_log": False}
    try:
        serve.start(proxy_location="HeadOnly", http_options=options, logging_config=logging_config)
        serve.run(application, name=APP_NAME, route_prefix="/", logging_config=logging_config)
        yield
    finally:
        serve.shutdown()

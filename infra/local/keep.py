"""What `make demo KEEP=1` leaves running: the cluster, TensorBoard and a page, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra.local.background import write_environment
from infra.local.cluster import LOOPBACK_IP, RayCluster
from infra.local.processes import StartError, find_executable, free_ports, run_supervised
from infra.local.s3 import S3Server
from segan.cli.console import echo
from segan.utils.signals import graceful_shutdown

START_TIMEOUT_S = 120
GRACE_PERIOD_S = 10


def keep_running(folder: Path, server: S3Server, cluster: RayCluster, study: str) -> None:
    """Starts TensorBoard and the page, prints all addresses, and returns at SIGINT or SIGTERM.

    Both show what the demo has left in its folder.

    Args:
        study: its URI in the bucket.

    Raises:
        StartError: one of them does not start, or a server has ended.
    """
    environment = server.environment | cluster.environment
    token = cluster.token_path
    board_port, page_port = free_ports(2)
    tensorboard = ["--logdir", "tensorboard", "--host", LOOPBACK_IP, "--port", str(board_port)]
    page = ["serve", "ensemble", "--host", LOOPBACK_IP, "--port", str(page_port)]
    with ExitStack() as stack:
        stop_request = stack.enter_context(graceful_shutdown(signal.SIGINT, signal.SIGTERM))
        echo("\nstarting TensorBoard and the page")
        # TensorBoard knows no authentication: other users of this machine can see the curves.
        board_url = stack.enter_context(run_web("tensorboard", tensorboard, board_port, folder, {}))
        page_environment = environment | {"SEGAN_SERVE_TOKEN": token.read_text()}
        page_url = stack.enter_context(run_web("segan", page, page_port, folder, page_environment))
        exports = folder / "environment"
        write_environment(exports, environment)
        stack.callback(exports.unlink)
        echo(
            f"running until Ctrl-C, on {LOOPBACK_IP} only:\n"
            f"  Ray dashboard  {cluster.dashboard}    asks for the token in {token}\n"
            f"  TensorBoard    {board_url}    the trials; HParams compares them; asks for nothing\n"
            f"  page           {page_url}    segments your images; asks for the same token\n"
            f"  S3 endpoint    {server.endpoint}    keys in {exports}\n"
            "To use them in another terminal:\n"
            f"  . {exports} && .venv/bin/segan runs show {study}"
        )
        while not stop_request():
            if not all(Path(f"/proc/{pid}").exists() for pid in (server.pid, cluster.pid)):
                raise StartError(f"a server has ended: see the logs in {folder}")
            time.sleep(0.2)
        echo("stopping")


@contextmanager
def run_web(
    program: str, arguments: Sequence[str], port: int, folder: Path, environment: Mapping[str, str]
) -> Iterator[str]:
    """Runs a program in `folder` that answers HTTP requests at a port; yields its address."""
    url = f"http://{LOOPBACK_IP}:{port}"
    with run_supervised(
        [find_executable(program), *arguments],
        folder=folder,
        environment=os.environ | environment,
        grace_period_s=GRACE_PERIOD_S,
    ) as process:
        process.wait_until(lambda: _responds(url), START_TIMEOUT_S)
        yield url


def _responds(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False

"""A Ray head node on this machine that jobs join as they would join a cluster's.

It listens on loopback alone, asks for a token, and takes nothing but its own folder: other Rays
on the machine neither see it nor are seen.
"""

import json
import os
import secrets
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.processes import free_ports, insisting, installed, running

START_SECONDS = 90
GRACE_SECONDS = 10
GIB = 2**30
# Ray puts a Unix socket about 65 characters below its folder, and their paths end at 107.
LONGEST_FOLDER = 40
# Ray listens on every address of the machine, 127.0.0.1 or not asked for, unless it believes that
# it is on a system where it cannot make clusters. Drivers must believe the same.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class RayCluster:
    """A running Ray head. `folder` has Ray's own logs, in `session_latest/logs`."""

    address: str
    dashboard: str
    token_path: Path
    folder: Path
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """All that a driver needs for `ray.init()`. Set it before Ray is imported."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            **_shared_environment(self.token_path),
        }

    def has_node(self) -> bool:
        """Whether the dashboard answers and knows a node that can take work."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.dashboard}/api/v0/nodes",
            headers={"Authorization": f"Bearer {self.token_path.read_text()}"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=5) as response:
                nodes = json.load(response)["data"]["result"]["result"]
        except (OSError, urllib.error.URLError):
            return False
        return any(node["state"] == "ALIVE" for node in nodes)


@contextmanager
def ray_cluster(
    folder: Path,
    num_cpus: int,
    environment: Mapping[str, str],
    object_store_memory: int = GIB,
) -> Iterator[RayCluster]:
    """Run a Ray head with `num_cpus` logical CPUs.

    Its workers see `environment`, such as the keys to the S3 server: they inherit it from the
    head, and so it is in no message and no log.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    token_path = _write_token(folder)
    with ExitStack() as stack:
        ray_folder = stack.enter_context(_short(folder))
        yield insisting(
            lambda: stack.enter_context(
                _started(folder, ray_folder, token_path, num_cpus, environment, object_store_memory)
            )
        )


def _write_token(folder: Path) -> Path:
    path = folder / "token"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """A folder for Ray's sockets: in ours, or a passing one where that path is too long.

    Ray opens its folder to all users, so it is always a folder inside one of our own.
    """
    if len(str(folder / "ray")) <= LONGEST_FOLDER:
        yield folder / "ray"
        return
    parent = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        yield parent / "ray"
    finally:
        shutil.rmtree(parent, ignore_errors=True)


@contextmanager
def _started(
    folder: Path,
    ray_folder: Path,
    token_path: Path,
    num_cpus: int,
    environment: Mapping[str, str],
    object_store_memory: int,
) -> Iterator[RayCluster]:
    gcs, dashboard, client, agent, *metrics = free_ports(6)
    command = [
        installed("ray"),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        "--min-worker-port=0",  # any that is free: two Rays would share the usual range
        "--max-worker-port=0",
        f"--temp-dir={ray_folder}",
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={object_store_memory}",
    ]
    with running(
        command,
        folder=folder,
        environment=_head_environment(
            environment, token_path, ray_folder.with_name("tmp"), metrics
        ),
        grace=GRACE_SECONDS,
    ) as head:
        cluster = RayCluster(
            f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", token_path, ray_folder, head.pid
        )
        head.wait_until(cluster.has_node, START_SECONDS)
        yield cluster


def _head_environment(
    environment: Mapping[str, str], token_path: Path, scratch: Path, metrics: list[int]
) -> dict[str, str]:
    scratch.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return {
        **kept,
        **environment,
        **_shared_environment(token_path),
        "TMPDIR": str(scratch),  # killed, its processes leave folders there
        # On SIGTERM it would wait for its jobs to move to other nodes, and there are none.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "DASHBOARD_METRIC_PORT": str(metrics[0]),
        "AUTOSCALER_METRIC_PORT": str(metrics[1]),
    }


def _shared_environment(token_path: Path) -> dict[str, str]:
    """What the head and the drivers must agree on."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
        **LOOPBACK,
    }

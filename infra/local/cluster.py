"""A Ray head on this machine that jobs join as they would join a cluster's, and more nodes to it.

It listens on loopback alone, asks for a token, and takes nothing but its own folder: other Rays
on the machine neither see it nor are seen. In a network namespace it has the address that it is
given there (`infra.local.namespaces`).
"""

import json
import os
import secrets
import shutil
import sysconfig
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.processes import find_executable, free_ports, retry_start, run_supervised

START_TIMEOUT_S = 90
GRACE_PERIOD_S = 10
GIB = 2**30
# Ray puts a Unix socket about 65 characters below its folder, and their paths end at 107.
MAX_FOLDER_LENGTH = 40
# Ray listens on every address of the machine, 127.0.0.1 or not asked for, unless it believes that
# it is on a system where it cannot make clusters. Drivers must believe the same.
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
LOOPBACK_IP = "127.0.0.1"


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
            **_shared_environment(self.token_path, self.address.split(":")[0]),
        }

    def alive_node_ids(self) -> set[str]:
        """Ids of the nodes that live, as the dashboard knows them; none where it is silent."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.dashboard}/api/v0/nodes",
            headers={"Authorization": f"Bearer {self.token_path.read_text()}"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=5) as response:
                nodes = json.load(response)["data"]["result"]["result"]
        except (OSError, urllib.error.URLError):
            return set()
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}


@contextmanager
def ray_cluster(
    folder: Path,
    num_cpus: int,
    environment: Mapping[str, str],
    object_store_memory: int = GIB,
    ip: str = LOOPBACK_IP,
) -> Iterator[RayCluster]:
    """Run a Ray head with `num_cpus` logical CPUs, listening on `ip` alone.

    Its workers see `environment`, such as the keys to the S3 server: they inherit it from the
    head, and so it is in no message and no log.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    token_path = _write_token(folder)
    with ExitStack() as stack:
        ray_folder = stack.enter_context(_socket_folder(folder))
        yield retry_start(
            lambda: stack.enter_context(
                _start_head(
                    folder, ray_folder, token_path, num_cpus, environment, object_store_memory, ip
                )
            )
        )


@contextmanager
def ray_node(
    cluster: RayCluster,
    folder: Path,
    num_cpus: int,
    environment: Mapping[str, str],
    ip: str,
    num_gpus: int = 0,
) -> Iterator[None]:
    """Run one more node of a cluster in network namespaces: on loopback there is but one.

    GPUs are what it says it has, whether the machine has them or not.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    agent, *metrics = free_ports(3)
    command = [
        find_executable("ray"),
        "start",
        "--block",
        f"--address={cluster.address}",
        f"--node-ip-address={ip}",
        f"--dashboard-agent-listen-port={agent}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        f"--num-cpus={num_cpus}",
        f"--num-gpus={num_gpus}",
        f"--object-store-memory={GIB // 4}",
    ]
    earlier_nodes = cluster.alive_node_ids()  # one that was killed may be among them for a while
    with run_supervised(
        command,
        folder=folder,
        environment=_node_environment(
            {**environment, **_api_environment(cluster.dashboard)},
            cluster.token_path,
            folder / "tmp",
            metrics,
            ip,
        ),
        grace_period_s=GRACE_PERIOD_S,
    ) as node:
        node.wait_until(lambda: bool(cluster.alive_node_ids() - earlier_nodes), START_TIMEOUT_S)
        yield


def _write_token(folder: Path) -> Path:
    path = folder / "token"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """A folder for Ray's sockets: in ours, or a passing one where that path is too long.

    Ray opens its folder to all users, so it is always a folder inside one of our own.
    """
    if len(str(folder / "ray")) <= MAX_FOLDER_LENGTH:
        yield folder / "ray"
        return
    parent = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        yield parent / "ray"
    finally:
        shutil.rmtree(parent, ignore_errors=True)


@contextmanager
def _start_head(
    folder: Path,
    ray_folder: Path,
    token_path: Path,
    num_cpus: int,
    environment: Mapping[str, str],
    object_store_memory: int,
    ip: str,
) -> Iterator[RayCluster]:
    gcs, dashboard, client, agent, *metrics = free_ports(6)
    command = [
        find_executable("ray"),
        "start",
        "--head",
        "--block",
        f"--node-ip-address={ip}",
        f"--dashboard-host={ip}",
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
    with run_supervised(
        command,
        folder=folder,
        environment=_node_environment(
            {**environment, **_api_environment(f"http://{ip}:{dashboard}")},
            token_path,
            ray_folder.with_name("tmp"),
            metrics,
            ip,
        ),
        grace_period_s=GRACE_PERIOD_S,
    ) as head:
        cluster = RayCluster(
            f"{ip}:{gcs}", f"http://{ip}:{dashboard}", token_path, ray_folder, head.pid
        )
        head.wait_until(lambda: bool(cluster.alive_node_ids()), START_TIMEOUT_S)
        yield cluster


def _api_environment(dashboard: str) -> dict[str, str]:
    """Ray's own actors ask the State API too, and with two Rays on a machine find neither."""
    return {"RAY_API_SERVER_ADDRESS": dashboard}


def _node_environment(
    environment: Mapping[str, str], token_path: Path, scratch: Path, metrics: list[int], ip: str
) -> dict[str, str]:
    scratch.mkdir(exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return {
        **inherited,
        **environment,
        **_shared_environment(token_path, ip),
        # The `python` of a job's entrypoint is the one that has our packages.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "TMPDIR": str(scratch),  # killed, its processes leave folders there
        # On SIGTERM it would wait for its jobs to move to other nodes, and there are none.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # for a training's last checkpoint; 3 s and a kill else
        # A node that is cut off is given up after 20 s of silence; by Ray's own values, a minute.
        "RAY_health_check_period_ms": "2000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "4",
        "DASHBOARD_METRIC_PORT": str(metrics[0]),
        "AUTOSCALER_METRIC_PORT": str(metrics[1]),
    }


def _shared_environment(token_path: Path, ip: str) -> dict[str, str]:
    """What nodes and drivers must agree on."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
        **(LOOPBACK_ENV if ip == LOOPBACK_IP else dict.fromkeys(LOOPBACK_ENV, "1")),
    }

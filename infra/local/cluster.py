"""A Ray cluster on this machine, which jobs use like any other cluster.

It listens on the loopback address, requires a token and uses only its own folder, so it does not
interfere with other Ray clusters on the machine. In a network namespace it listens on the
namespace's address (`infra.local.namespaces`).
"""

import json
import os
import secrets
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.processes import (
    SupervisedProcess,
    find_executable,
    free_ports,
    retry_start,
    run_supervised,
)
from ray_jobs import SINGLE_NODE_ENV
from ray_jobs.cluster.folders import MAX_FOLDER_LENGTH, temporary_ray_folder

START_TIMEOUT_S = 90
GRACE_PERIOD_S = 10
GIB = 2**30
LOOPBACK_IP = "127.0.0.1"


@dataclass(frozen=True)
class RayCluster:
    """A running Ray head. `folder` has Ray's logs in `session_latest/logs`.

    `client_address` is for drivers outside the cluster's network, which connect by Ray Client.
    """

    address: str
    client_address: str
    dashboard: str
    token_path: Path
    folder: Path
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a driver needs for `ray.init()`, set before it imports Ray."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            **_shared_environment(self.token_path, self.address.split(":")[0]),
        }

    def alive_node_ids(self) -> set[str]:
        """The ids of the nodes that are alive; empty if the dashboard does not respond."""
        request = urllib.request.Request(  # noqa: S310
            f"{self.dashboard}/api/v0/nodes",
            headers={"Authorization": f"Bearer {self.token_path.read_text()}"},
        )
        without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with without_proxy.open(request, timeout=5) as response:
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
    """Runs a Ray head with `num_cpus` logical CPUs that listens on `ip` only.

    Args:
        environment: variables of its workers, such as S3 credentials. The workers inherit them from
            the head, so they are part of no message and no log.
        object_store_memory: bytes.
    """
    folder = _make_folder(folder)
    token_path = _write_token(folder)
    options = [
        "--head",
        f"--dashboard-host={ip}",
        f"--num-cpus={num_cpus}",
        f"--object-store-memory={object_store_memory}",
    ]

    @contextmanager
    def start(ray_folder: Path) -> Iterator[RayCluster]:
        gcs, dashboard, client, *agent_ports = free_ports(6)
        ports = [
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
        ]
        url, scratch = f"http://{ip}:{dashboard}", ray_folder.with_name("tmp")
        all_options = [*options, *ports, f"--temp-dir={ray_folder}"]
        with _run_ray(
            all_options, agent_ports, folder, scratch, environment, token_path, url, ip
        ) as head:
            addresses = f"{ip}:{gcs}", f"ray://{ip}:{client}"
            cluster = RayCluster(*addresses, url, token_path, ray_folder, head.pid)
            head.wait_until(lambda: bool(cluster.alive_node_ids()), START_TIMEOUT_S)
            yield cluster

    with ExitStack() as stack:
        ray_folder = stack.enter_context(_socket_folder(folder))
        yield retry_start(lambda: stack.enter_context(start(ray_folder)))


@contextmanager
def ray_node(
    cluster: RayCluster,
    folder: Path,
    num_cpus: int,
    environment: Mapping[str, str],
    ip: str,
    num_gpus: int = 0,
) -> Iterator[None]:
    """Runs another node of a cluster in network namespaces; loopback has room for one node only.

    Args:
        num_gpus: that the node claims to have, whether the machine has them or not.
    """
    folder = _make_folder(folder)
    earlier_nodes = cluster.alive_node_ids()  # a killed node may be among them for a while
    options = [
        f"--address={cluster.address}",
        f"--num-cpus={num_cpus}",
        f"--num-gpus={num_gpus}",
        f"--object-store-memory={GIB // 4}",
    ]
    with ExitStack() as stack:

        def start() -> None:
            node = stack.enter_context(
                _run_ray(
                    options,
                    free_ports(3),
                    folder,
                    folder / "tmp",
                    environment,
                    cluster.token_path,
                    cluster.dashboard,
                    ip,
                )
            )
            node.wait_until(lambda: bool(cluster.alive_node_ids() - earlier_nodes), START_TIMEOUT_S)

        retry_start(start)  # Ray gives a node up that has not started after 30 s
        yield


@contextmanager
def _run_ray(
    options: Sequence[str],
    agent_ports: Sequence[int],
    folder: Path,
    scratch: Path,
    environment: Mapping[str, str],
    token_path: Path,
    dashboard: str,
    ip: str,
) -> Iterator[SupervisedProcess]:
    """Runs `ray start` with the options of this node and those of all nodes.

    Args:
        agent_ports: for the dashboard agent, the metrics and the autoscaler's metrics.
        scratch: the folder of temporary files.
    """
    agent, metrics, autoscaler_metrics = agent_ports
    command = [
        find_executable("ray"),
        "start",
        "--block",
        f"--node-ip-address={ip}",
        f"--dashboard-agent-listen-port={agent}",
        "--min-worker-port=0",  # any free port: two clusters would share the default range
        "--max-worker-port=0",
        *options,
    ]
    scratch.mkdir(exist_ok=True)
    inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    ray_environment = {
        # Ray's own actors call the State API, and with two clusters on a machine find neither.
        "RAY_API_SERVER_ADDRESS": dashboard,
        **_shared_environment(token_path, ip),
        # So that `python` in a job's entrypoint is the one with our packages.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]),
        "TMPDIR": str(scratch),  # processes that are killed leave folders there
        # On SIGTERM a node would wait for its jobs to move to other nodes, of which there are none.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",  # for a training's last checkpoint; default: 3
        # A busy machine starts a process of Ray Client in more than Ray's 30 s.
        "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120",
        # A disconnected node counts as dead after 20 s; with Ray's defaults, after a minute.
        "RAY_health_check_period_ms": "2000",
        "RAY_health_check_timeout_ms": "3000",
        "RAY_health_check_failure_threshold": "4",
        "DASHBOARD_METRIC_PORT": str(metrics),
        "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
    }
    with run_supervised(
        command,
        folder=folder,
        environment={**inherited, **environment, **ray_environment},
        grace_period_s=GRACE_PERIOD_S,
    ) as node:
        yield node


def _make_folder(folder: Path) -> Path:
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _write_token(folder: Path) -> Path:
    path = folder / "token"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@contextmanager
def _socket_folder(folder: Path) -> Iterator[Path]:
    """A folder for Ray's sockets: `folder`/ray, or a temporary one if that path is too long.

    Ray makes its folder accessible to all users, so its parent must be private.
    """
    if len(str(folder / "ray")) <= MAX_FOLDER_LENGTH:
        yield folder / "ray"
        return
    with temporary_ray_folder() as temporary:
        yield Path(temporary)


def _shared_environment(token_path: Path, ip: str) -> dict[str, str]:
    """The variables that must be the same for nodes and drivers."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
        **(SINGLE_NODE_ENV if ip == LOOPBACK_IP else dict.fromkeys(SINGLE_NODE_ENV, "1")),
    }

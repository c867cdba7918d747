"""An S3 server (SeaweedFS) on this machine's loopback address, for tests and the demo.

    python -m infra.local.s3 --folder DIR --bucket NAME

Objects stay in the folder for the next start. Only the S3 port requires credentials; other users of
the machine can read the objects through SeaweedFS's internal ports. Do not store secrets in it.
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra.local.processes import (
    GRPC_PORT_OFFSET,
    StartError,
    find_executable,
    free_ports,
    retry_start,
    run_supervised,
)

REGION = "us-east-1"
SERVICES = ("master", "volume", "filer", "s3")
START_TIMEOUT_S = 30
# After SIGTERM it closes its files, and then often waits for its connections to itself.
GRACE_PERIOD_S = 1
MIN_FREE_MIB = 100


@dataclass(frozen=True)
class S3Server:
    """A running S3 server and its credentials."""

    endpoint: str
    master: str
    access_key: str
    secret_key: str
    pid: int
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which boto3 and pyarrow use the server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }

    def create_bucket(self, name: str) -> None:
        """Creates a bucket if it does not exist."""
        client = self._client()
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)

    def is_ready(self) -> bool:
        """Whether the server accepts its credentials and can read objects."""
        try:
            self._client().list_buckets()
            return self._has_volumes()
        except (BotoCoreError, ClientError, OSError):
            return False

    def _has_volumes(self) -> bool:
        """Whether the volume server has registered with the master.

        Buckets can be listed before. After a SIGKILL the volume server may retry for seconds until
        it reaches the master, and until then requests for objects fail with InternalError.
        """
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.master}/dir/status", timeout=5) as response:
            return bool(json.load(response)["Topology"]["DataCenters"])

    def _client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(
                connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}
            ),
        )


@contextmanager
def s3_server(folder: Path, ip: str = "127.0.0.1") -> Iterator[S3Server]:
    """Runs an S3 server on `ip`, with its objects in `folder`, during the block.

    Its credentials are those of the environment, or random ones if there are none.

    Raises:
        StartError: the server does not start, or the disk is nearly full.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_disk(folder)
    with ExitStack() as stack:
        yield retry_start(lambda: stack.enter_context(_start_server(folder, ip)))


def _check_disk(folder: Path) -> None:
    """On a nearly full disk SeaweedFS starts, but every write waits forever."""
    free = shutil.disk_usage(folder).free // 2**20
    if free < 2 * MIN_FREE_MIB:
        raise StartError(
            f"{folder}: the S3 server needs {2 * MIN_FREE_MIB} MiB of free disk, found {free}; "
            "free some space or choose another folder"
        )


@contextmanager
def _start_server(folder: Path, ip: str) -> Iterator[S3Server]:
    access_key, secret_key = _credentials()
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    environment = _environment(folder, access_key, secret_key)
    try:
        with run_supervised(
            _command(folder, ip, ports),
            folder=folder,
            environment=environment,
            grace_period_s=GRACE_PERIOD_S,
        ) as weed:
            server = S3Server(
                f"http://{ip}:{ports['s3']}",
                f"http://{ip}:{ports['master']}",
                access_key,
                secret_key,
                weed.pid,
                folder,
            )
            weed.wait_until(server.is_ready, START_TIMEOUT_S)
            yield server
    finally:
        for service, port in ports.items():  # always created in /tmp
            Path(f"/tmp/seaweedfs-{service}-grpc-{port + GRPC_PORT_OFFSET}.sock").unlink(  # noqa: S108
                missing_ok=True
            )


def _credentials() -> tuple[str, str]:
    configured = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if configured[0] and configured[1]:
        return configured[0], configured[1]
    return secrets.token_hex(10), secrets.token_hex(20)


def _environment(folder: Path, access_key: str, secret_key: str) -> dict[str, str]:
    """This process's environment without the variables that configure SeaweedFS."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "WEED_", "S3_"))}
    return inherited | {
        "HOME": str(folder),  # ignores ~/.seaweedfs
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        # Volumes per bucket: with the default of 7 they run out at 140 buckets.
        "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1",
    }


def _command(folder: Path, ip: str, ports: dict[str, int]) -> list[str]:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    return [
        find_executable("weed"),
        "-logtostderr=true",  # and not to files in /tmp
        "server",
        "-s3",
        f"-dir={data}",
        f"-ip={ip}",
        f"-ip.bind={ip}",
        *(f"-{service}.port={port}" for service, port in ports.items()),
        *(f"-{service}.port.grpc={port + GRPC_PORT_OFFSET}" for service, port in ports.items()),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.localSocket=s3.sock",  # relative: an absolute path may be too long for a socket
        "-filer.localSocket=filer.sock",
        "-s3.autoCreateBucket=false",  # as on AWS
        "-s3.allowDeleteBucketNotEmpty=false",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",  # not allocated in advance
        "-volume.max=1000",
        f"-volume.minFreeSpace={MIN_FREE_MIB}MiB",
        "-volume.preStopSeconds=0",
    ]


def main() -> None:
    """Runs the server in the foreground; prints the variables to use it from another terminal."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.s3", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--bucket", required=True)
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        with s3_server(arguments.folder) as server:
            server.create_bucket(arguments.bucket)
            for name, value in server.environment.items():
                print(f"export {name}={shlex.quote(value)}", flush=True)
            while Path(f"/proc/{server.pid}").exists():
                time.sleep(0.5)
            sys.exit(f"the S3 server has ended; see {server.folder}/weed.log")
    except StartError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

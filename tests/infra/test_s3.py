"""The S3 server requires its credentials, and leaves no processes behind."""

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from pyarrow import fs

from infra.local import s3 as s3_module
from infra.local.processes import StartError
from infra.local.s3 import S3Server, s3_server
from infra.local.supervise import descendants
from tests.infra.process_utils import (
    all_exited,
    child_process,
    listening_addresses,
    read_line,
    wait_for,
)

pytestmark = pytest.mark.integration


def s3_client(server: S3Server) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )


def bucket_names(server: S3Server) -> list[str]:
    return [bucket["Name"] for bucket in s3_client(server).list_buckets()["Buckets"]]


def test_boto3_and_pyarrow_need_only_the_environment(bucket: str) -> None:
    name = bucket.removeprefix("s3://")
    client = boto3.session.Session().client("s3")  # boto3.client caches earlier credentials
    client.put_object(Bucket=name, Key="by/boto3", Body=b"one")
    files, path = fs.FileSystem.from_uri(bucket)
    with files.open_output_stream(f"{path}/by/pyarrow") as out:
        out.write(b"two" * 3_000_000)
    assert files.open_input_file(f"{path}/by/boto3").read() == b"one"
    assert client.get_object(Bucket=name, Key="by/pyarrow")["Body"].read() == b"two" * 3_000_000


@pytest.mark.parametrize("keys", [{"secret_key": "wrong"}, {"access_key": "who"}])
def test_wrong_credentials_are_rejected(s3: S3Server, keys: dict[str, Any]) -> None:
    with pytest.raises(ClientError) as refusal:
        s3_client(replace(s3, **keys)).list_buckets()
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_writing_does_not_create_a_bucket(s3: S3Server) -> None:
    with pytest.raises(ClientError, match="NoSuchBucket"):
        s3_client(s3).put_object(Bucket="never-made", Key="key", Body=b"")


def test_creating_a_bucket_twice_keeps_its_objects(s3: S3Server, bucket: str) -> None:
    name = bucket.removeprefix("s3://")
    s3_client(s3).put_object(Bucket=name, Key="key", Body=b"kept")
    s3.create_bucket(name)
    assert s3_client(s3).get_object(Bucket=name, Key="key")["Body"].read() == b"kept"


def test_it_listens_on_loopback_only(s3: S3Server) -> None:
    assert {address for address, _ in listening_addresses([s3.pid])} == {"127.0.0.1"}


def test_the_secret_key_is_neither_in_its_log_nor_in_its_command(s3: S3Server) -> None:
    command = Path(f"/proc/{s3.pid}/cmdline").read_text()
    log = (s3.folder / "weed.log").read_text()
    assert s3.secret_key not in command + log


def test_it_is_not_ready_before_objects_can_be_read(s3: S3Server) -> None:
    assert s3.is_ready()
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        closed = f"http://127.0.0.1:{reserved.getsockname()[1]}"
    assert not replace(s3, master=closed).is_ready()


def test_two_servers_are_independent(s3: S3Server, tmp_path: Path) -> None:
    with s3_server(tmp_path) as second:
        assert second.secret_key == s3.secret_key  # from the environment
        second.create_bucket("of-the-second")
        assert bucket_names(second) == ["of-the-second"]
        assert "of-the-second" not in bucket_names(s3)
    assert all_exited([second.pid])


def test_another_port_replaces_one_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = s3_module.free_ports(8)
    choices = [free[:4], free[4:]]
    with socket.create_server(("127.0.0.1", free[0])):
        monkeypatch.setattr(s3_module, "free_ports", lambda count: choices.pop(0))
        with s3_server(tmp_path) as server:
            assert server.is_ready()
    assert not choices


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_module, "MIN_FREE_MIB", 2**40)
    with pytest.raises(StartError, match="free disk"), s3_server(tmp_path):
        pass


def test_the_command_prints_its_environment_and_keeps_objects(tmp_path: Path) -> None:
    with cli_server(tmp_path, signal.SIGKILL) as first:
        first.put_object(Bucket="mine", Key="key", Body=b"value")
    with cli_server(tmp_path, signal.SIGTERM) as second:
        assert second.get_object(Bucket="mine", Key="key")["Body"].read() == b"value"


@contextmanager
def cli_server(folder: Path, end: signal.Signals) -> Iterator[Any]:
    """A client of a server that the command starts, with its own credentials."""
    command = [sys.executable, "-m", "infra.local.s3", "--folder", str(folder), "--bucket", "mine"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with child_process(command, environment) as terminal:
        matches = [re.fullmatch(r"export (\w+)=(\S+)", read_line(terminal)) for _ in range(5)]
        exports = {match[1]: match[2] for match in matches if match}
        pids = descendants(terminal.pid)
        assert len(pids) == 2
        ports = [port for _, port in listening_addresses(pids)]
        yield boto3.client(
            "s3",
            endpoint_url=exports["AWS_ENDPOINT_URL"],
            aws_access_key_id=exports["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=exports["AWS_SECRET_ACCESS_KEY"],
        )
        terminal.send_signal(end)
        terminal.wait()
    assert terminal.returncode == (0 if end == signal.SIGTERM else -end)
    assert wait_for(lambda: all_exited(pids))
    for port in ports:  # not deleted after a SIGKILL
        for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):
            assert end == signal.SIGKILL
            left.unlink()

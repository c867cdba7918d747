"""The S3 server is real, closed to all but the holder of its keys, and leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from pyarrow import fs

from infra.local import s3 as s3_module
from infra.local.processes import StartError
from infra.local.s3 import S3Server, s3_server
from infra.local.supervise import descendants
from tests.infra.observing import listening_addresses, none_left, wait_for

pytestmark = pytest.mark.integration


def test_boto3_and_pyarrow_need_only_the_environment(bucket):
    name = bucket.removeprefix("s3://")
    client = boto3.client("s3")
    client.put_object(Bucket=name, Key="by/boto3", Body=b"one")
    files, path = fs.FileSystem.from_uri(bucket)
    with files.open_output_stream(f"{path}/by/pyarrow") as out:
        out.write(b"two" * 3_000_000)
    assert files.open_input_file(f"{path}/by/boto3").read() == b"one"
    assert client.get_object(Bucket=name, Key="by/pyarrow")["Body"].read() == b"two" * 3_000_000


@pytest.mark.parametrize("keys", [{"aws_secret_access_key": "wrong"}, {"aws_access_key_id": "who"}])
def test_wrong_keys_are_refused(s3, keys):
    right = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": s3.secret_key}
    with pytest.raises(ClientError) as refusal:
        boto3.client("s3", **{**right, **keys}).list_buckets()
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_bucket_is_not_made_by_writing_to_it(s3):
    with pytest.raises(ClientError, match="NoSuchBucket"):
        boto3.client("s3").put_object(Bucket="never-made", Key="key", Body=b"")


def test_making_a_bucket_twice_keeps_what_is_in_it(s3, bucket):
    name = bucket.removeprefix("s3://")
    boto3.client("s3").put_object(Bucket=name, Key="key", Body=b"kept")
    s3.create_bucket(name)
    assert boto3.client("s3").get_object(Bucket=name, Key="key")["Body"].read() == b"kept"


def test_it_listens_on_loopback_only(s3):
    assert {address for address, _ in listening_addresses([s3.pid])} == {"127.0.0.1"}


def test_the_keys_are_neither_in_its_log_nor_in_its_command(s3):
    command = Path(f"/proc/{s3.pid}/cmdline").read_text()
    log = (s3.folder / "weed.log").read_text()
    assert s3.secret_key not in command + log
    assert s3.access_key not in command + log


def test_two_servers_keep_apart_and_a_folder_keeps_its_objects(s3, tmp_path, monkeypatch):
    def client(server: S3Server):
        return boto3.client("s3", endpoint_url=server.endpoint)

    with s3_server(tmp_path) as second:  # with the same keys: they are in the environment
        assert second.endpoint != s3.endpoint
        second.create_bucket("kept")
        client(second).put_object(Bucket="kept", Key="key", Body=b"value")
        assert "kept" not in {b["Name"] for b in client(s3).list_buckets()["Buckets"]}
    assert none_left([second.pid])
    assert not list(Path("/tmp").glob(f"seaweedfs-*-grpc-*{second.endpoint[-4:]}.sock"))

    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with s3_server(tmp_path) as third:
        assert third.secret_key not in ("", second.secret_key)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", third.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", third.secret_key)
        assert client(third).get_object(Bucket="kept", Key="key")["Body"].read() == b"value"


def test_a_taken_port_is_exchanged_for_another(tmp_path, monkeypatch):
    free_ports = s3_module.free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        choices = [[*free_ports(3), taken.getsockname()[1]], free_ports(4)]
        monkeypatch.setattr(s3_module, "free_ports", lambda count: choices.pop(0))
        with s3_server(tmp_path) as server:
            assert server.answers()
    assert not choices


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "MINIMUM_FREE_MIB", 2**40)
    with pytest.raises(StartError, match="free disk"), s3_server(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_command_line_says_how_to_use_it_and_leaves_nothing(tmp_path, number):
    command = [
        sys.executable,
        "-m",
        "infra.local.s3",
        "--folder",
        str(tmp_path),
        "--bucket",
        "mine",
    ]
    own_keys = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own_keys) as terminal:
        assert terminal.stdout is not None
        exports = dict(
            re.fullmatch(r"export (\w+)=(\S+)\n", terminal.stdout.readline()).groups()
            for _ in range(5)
        )
        client = boto3.client(
            "s3",
            endpoint_url=exports["AWS_ENDPOINT_URL"],
            aws_access_key_id=exports["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=exports["AWS_SECRET_ACCESS_KEY"],
            region_name=exports["AWS_REGION"],
        )
        assert [b["Name"] for b in client.list_buckets()["Buckets"]] == ["mine"]
        pids = descendants(terminal.pid)
        assert len(pids) == 2
        terminal.send_signal(number)
    assert terminal.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert wait_for(lambda: none_left(pids))

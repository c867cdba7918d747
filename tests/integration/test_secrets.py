"""Secrets planted in the environment appear in no file, output or error."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.check_manifests import ROOT
from infra.local.s3 import S3Server, s3_server
from segan import storage
from segan.errors import SeganError
from segan.storage import retry, s3
from tests.fault_proxy import Fault, FaultProxy, run_fault_proxy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

BUCKET = "s3://secrets"
TINY = (
    f"data.records={BUCKET}/records network.width=2 augment.crop=64 training.batch_size=4 "
    "training.epochs=1 training.log_every_steps=1 cluster.threads_per_worker=1"
)
PIPELINE_COMMANDS = {
    "synth": f"{BUCKET}/archive --train 8 --validation 2 --test 2 --short-side 64",
    "ingest": f"{BUCKET}/archive {BUCKET}/records --width 72 --height 64 --local --debug",
    "train": f"{BUCKET}/run {TINY} --local --debug",
    "evaluate": f"{BUCKET}/run {BUCKET}/archive --split test --local --debug",
    "predict": f"{BUCKET}/run {BUCKET}/archive/ISIC-2017_Test_v2_Data out --local --debug",
    "runs ls": f"{BUCKET} --json",
}
FAILING_COMMANDS = {
    "no bucket": f"evaluate s3://never-made/run {BUCKET}/archive --local --debug",
    "no run": f"evaluate {BUCKET}/nothing {BUCKET}/archive --local --debug",
    "no records": f"train {BUCKET}/run data.records={BUCKET}/nothing --local --debug",
    "wrong use": f"train {BUCKET}/run network.widht=3 --local --debug",
}
LOCAL_COMMANDS = ("synth", "ingest", "train")  # also run on a local folder
# All commands run in one process, which imports torch once; each one's output goes to a file.
COMMANDS_PROGRAM = """
import json, os, sys
from segan.cli.main import main

codes = os.fdopen(os.dup(1), "w")
for name, words, environment in json.load(sys.stdin):
    os.environ.update(environment)
    said = os.open(f"{name}.said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1), os.dup2(said, 2)
    print(name, main(words.split()), sep="\\t", file=codes)
    sys.stdout.flush()
"""
# Error codes and statuses, each handled by another branch of segan.storage.s3.
ERROR_STATUSES = {
    "ExpiredToken": 400,
    "SignatureDoesNotMatch": 403,
    "RequestTimeTooSkewed": 403,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "UnheardOf": 418,
    "SlowDown": 503,
    "InsufficientStorage": 507,
}


@pytest.fixture(scope="module")
def planted_secrets(clean_environment: None) -> dict[str, str]:
    """The secrets by the name of their variable; the store accepts the AWS keys among them."""
    secrets = {
        "AWS_ACCESS_KEY_ID": "PLANTEDKEYID00000001",
        "AWS_SECRET_ACCESS_KEY": "planted-secret-access-key-0000000000002",
        "AWS_SESSION_TOKEN": "planted-session-token-3",
        "RAY_AUTH_TOKEN": "planted-ray-token-4" * 4,
        "GF_SECURITY_ADMIN_PASSWORD": "planted-grafana-password-5",
    }
    token = Path.home() / ".ray" / "auth_token"
    return secrets | {"the token's file": token.read_text()}


@pytest.fixture(scope="module")
def server(
    planted_secrets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, planted_secrets[name])
        with s3_server(tmp_path_factory.mktemp("s3")) as started:
            for name, value in started.environment.items():
                patch.setenv(name, value)
            started.create_bucket(BUCKET.removeprefix("s3://"))
            yield started


@pytest.fixture(scope="module")
def faults(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with run_fault_proxy(server.endpoint, tmp_path_factory.mktemp("faults")) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def commands_folder(
    server: S3Server, planted_secrets: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder in which all commands ran, with their files and a `.said` file for each output."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "tmp").mkdir()
    everything = {name: value for name, value in planted_secrets.items() if name.isupper()}
    # SeaweedFS rejects a session token together with permanent keys.
    keys = everything | {"AWS_SESSION_TOKEN": ""}
    wrong = keys | {"AWS_SECRET_ACCESS_KEY": planted_secrets["AWS_SECRET_ACCESS_KEY"][:-1]}
    here = {
        name: PIPELINE_COMMANDS[name].replace(BUCKET, f"{folder}/root") for name in LOCAL_COMMANDS
    }
    commands = [
        *((f"{name} here", f"{name} {words}", everything) for name, words in here.items()),
        *((name, f"{name} {words}", keys) for name, words in PIPELINE_COMMANDS.items()),
        *((name, words, keys) for name, words in FAILING_COMMANDS.items()),
        ("wrong key", f"runs ls {BUCKET}", wrong),
        ("wrong token", f"runs ls {BUCKET}", everything),
    ]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS_PROGRAM],
        input=json.dumps(commands),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": f"{folder}/tmp"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    codes = {name: int(code) for name, code in (x.split("\t") for x in done.stdout.splitlines())}
    assert [name for name, code in codes.items() if code] == [
        *FAILING_COMMANDS,
        "wrong key",
        "wrong token",
    ]
    return folder


def find_secrets(planted: Mapping[str, str], content: bytes) -> list[str]:
    """Returns the names of the secrets in `content`, verbatim or in base64."""
    forms = {
        name: (value.encode(), base64.b64encode(value.encode()).rstrip(b"=")[:-1])
        for name, value in planted.items()
    }
    return [name for name, both in forms.items() if any(one in content for one in both)]


def decompress(name: str, content: bytes) -> bytes:
    """Returns a file's content, with the decompressed values of a Parquet file appended."""
    if not name.endswith(".parquet"):
        return content
    table = pq.read_table(io.BytesIO(content))
    words = table.drop_columns([c for c in ("image", "mask") if c in table.column_names])
    return content + repr((table.schema, table.schema.metadata, words.to_pylist())).encode()


def test_planted_secrets_are_found(planted_secrets: dict[str, str]) -> None:
    for name, value in planted_secrets.items():
        assert find_secrets(planted_secrets, b"x" + value.encode() + b"y") == [name]
        assert find_secrets(planted_secrets, base64.b64encode(value.encode())) == [name]
    assert find_secrets(planted_secrets, b"nothing") == []


def test_no_file_in_the_bucket_contains_a_secret(
    commands_folder: Path, planted_secrets: dict[str, str]
) -> None:
    names = {file.name for file in storage.list_files(BUCKET)}
    assert {"run/run.json", "run/metrics.jsonl", "run/driver.log", "records/manifest.json"} <= names
    assert any(name.startswith("run/checkpoints/") for name in names)
    assert any(name.startswith("run/tensorboard/") for name in names)
    for name in names:
        content = decompress(name, storage.read_bytes(f"{BUCKET}/{name}"))
        assert find_secrets(planted_secrets, content) == [], name


def test_no_output_or_local_file_contains_a_secret(
    commands_folder: Path, planted_secrets: dict[str, str]
) -> None:
    said = {path.stem: path.read_bytes() for path in commands_folder.glob("*.said")}
    assert said.keys() >= {
        *PIPELINE_COMMANDS,
        *FAILING_COMMANDS,
        "train here",
        "wrong key",
        "wrong token",
    }
    assert b"Traceback" in said["no bucket"]
    assert (commands_folder / "root" / "run" / "run.json").is_file()
    assert b"access denied" in said["wrong key"]
    token = Path.home() / ".ray" / "auth_token"
    for path in (*commands_folder.rglob("*"), *Path.home().rglob("*")):
        if path.is_file() and path != token:
            content = decompress(path.name, path.read_bytes())
            assert find_secrets(planted_secrets, content) == [], path


@pytest.mark.parametrize("fault", [*ERROR_STATUSES, "refuse", "reset", "cut"])
def test_no_storage_error_contains_a_secret(
    faults: FaultProxy,
    planted_secrets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    """Neither its text, its traceback nor its pickle, which a worker sends to the driver."""
    for name in planted_secrets.keys() - {"the token's file"}:
        monkeypatch.setenv(name, planted_secrets[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL", faults.endpoint)
    monkeypatch.setenv(retry.TIMEOUT_VARIABLE, "0.5")
    kind = "answer" if fault in ERROR_STATUSES else fault
    status = ERROR_STATUSES.get(fault, 503)
    faults.inject(Fault(kind, times=None, status=status, code=fault, seconds=60))
    uri = f"{BUCKET}/file"
    calls = (
        storage.read_bytes,
        storage.exists,
        storage.list_files,
        storage.delete_folder,
        storage.RandomAccessFile,
        storage.check_access,
        lambda uri: storage.write_bytes(uri, b""),
    )
    try:
        for call in calls:
            with pytest.raises(SeganError) as caught:
                call(uri)
            trace = "".join(traceback.format_exception(caught.value)).encode()
            assert str(caught.value).encode() in trace
            for content in (trace, pickle.dumps(caught.value), caplog.text.encode()):
                assert find_secrets(planted_secrets, content) == []
    finally:
        faults.clear()


def test_a_password_in_the_endpoint_is_not_shown(
    planted_secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    password = planted_secrets["GF_SECURITY_ADMIN_PASSWORD"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://somebody:{password}@127.0.0.1:1")
    for call in (storage.check_access, storage.read_bytes, storage.list_files):
        with pytest.raises(SeganError, match="AWS_ENDPOINT_URL: expected") as caught:
            call(f"{BUCKET}/file")
        assert find_secrets(planted_secrets, str(caught.value).encode()) == []


def test_no_pickle_contains_a_secret(
    server: S3Server, commands_folder: Path, planted_secrets: dict[str, str]
) -> None:
    """Pickled objects contain URIs only; a client, which contains secrets, cannot be pickled."""
    with storage.RandomAccessFile(f"{BUCKET}/run/run.json") as file:
        assert find_secrets(planted_secrets, pickle.dumps(file)) == []
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.dumps(s3.shared_client())

"""`segan doctor` on a folder, and on the real S3 server with and without faults."""

import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from infra.local.s3 import S3Server
from segan import storage
from segan.doctor.checks import run_checks
from segan.doctor.storage import storage_checks
from segan.storage.compare_and_swap import conditional_file
from segan.storage.lease import LEASE_FILE, hold_lease
from tests.doctor.command import run_doctor
from tests.doctor.proxy import ProxyFaults, run_proxy

CHECK_ORDER = [
    "credentials",
    "bucket",
    "clock",
    "write",
    "read",
    "list",
    "conditional writes",
    "round trip",
]


def run_storage_checks(uri: str) -> dict[str, str]:
    """Returns "status | message" of each check by its name without `storage: `."""
    return {
        name.removeprefix("storage: "): f"{outcome.status} | {outcome.message}"
        for name, outcome in run_checks(storage_checks(uri))
    }


def statuses(found: dict[str, str]) -> dict[str, str]:
    return {name: line.split(" | ")[0] for name, line in found.items()}


def test_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines, _ = run_doctor(capsys, "--uri", str(tmp_path))
    found = {k: v for k, v in lines.items() if k.startswith("storage: ")}
    names = ["disk", "write", "read", "list", "conditional writes", "delete"]
    assert list(found) == [f"storage: {name}" for name in names]
    assert all(line.startswith("ok | ") for line in list(found.values())[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_removed_again(tmp_path: Path) -> None:
    assert statuses(run_storage_checks(str(tmp_path / "a" / "b")))["write"] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = run_storage_checks(str(tmp_path / "file" / "runs"))
    assert found["write"].startswith("failed | ")
    assert found["write"].endswith(": Not a directory; check the path")
    assert set(statuses(found).values()) - {"warning", "ok"} == {"failed", "skipped"}
    assert statuses(found)["delete"] == "skipped"


def test_an_invalid_uri_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    from segan.cli.main import main

    assert main(["doctor", "--uri", "s3://KEY:SECRET@bucket"]) == 2
    assert "SECRET@" not in capsys.readouterr().err


integration = pytest.mark.integration


@integration
def test_a_bucket_without_faults(
    bucket: str, s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    _, lines, err = run_doctor(capsys, "--uri", f"{bucket}/runs")
    found = {k.removeprefix("storage: "): v for k, v in lines.items() if k.startswith("storage: ")}
    assert list(found) == [*CHECK_ORDER, "delete"]
    assert {line.split(" | ")[0] for line in found.values()} == {"ok"}, found
    assert found["credentials"] == "ok | found in the environment"
    name = bucket.removeprefix("s3://")
    assert found["bucket"] == f"ok | {name} at {s3.endpoint}, region us-east-1"
    assert re.fullmatch(r"ok \| within [12] s of the store's clock", found["clock"])
    assert storage.list_files(bucket) == []
    assert s3.secret_key not in json.dumps(lines) + err
    assert s3.access_key not in json.dumps(lines) + err


@integration
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_wrong_key(
    bucket: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, "not-the-key-of-anybody")
    code, lines, err = run_doctor(capsys, "--uri", bucket)
    assert code == 1
    assert lines["storage: credentials"].startswith("ok | ")
    assert lines["storage: bucket"].startswith(f"failed | {bucket}: access denied; check AWS_")
    assert lines["storage: clock"].startswith("ok | ")  # an error response has a date too
    assert {v.split(" |")[0] for k, v in lines.items() if k.startswith("storage: ")} == {
        "ok",
        "failed",
        "skipped",
    }
    assert "not-the-key-of-anybody" not in json.dumps(lines) + err
    assert "storage: bucket" in err


@integration
def test_no_keys(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    found = run_storage_checks(bucket)
    assert found["credentials"] == "failed | none"
    assert "no credentials" in found["bucket"]


@integration
def test_a_missing_bucket(bucket: str) -> None:
    found = run_storage_checks(f"{bucket}-gone/runs")
    assert (
        found["bucket"]
        == f"failed | {bucket}-gone/runs: bucket does not exist; create it or correct the name"
    )
    rest = {n: v for n, v in statuses(found).items() if n not in ("credentials", "bucket", "clock")}
    assert set(rest.values()) == {"skipped"}


@integration
def test_a_closed_port(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    found = run_storage_checks(bucket)
    assert f"no valid response from http://127.0.0.1:{port}" in found["bucket"]
    assert statuses(found) == {
        **dict.fromkeys([*CHECK_ORDER, "delete"], "skipped"),
        "credentials": "ok",
        "bucket": "failed",
    }


@integration
@pytest.mark.parametrize(
    ("ahead", "clock"),
    [
        # A busy machine may read its clock seconds after the response.
        (30, r"ok \| within (1\d|2\d|3[0-2]) s of the store's clock"),
        (-300, r"warning \| (299|30\d|31\d) s ahead of the store's clock"),
        (7200, r"failed \| (718\d|719\d|720[01]) s behind the store's clock"),
    ],
)
def test_a_clock_that_is_off(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, ahead: float, clock: str
) -> None:
    with run_proxy(s3.endpoint, ProxyFaults(clock_offset_s=ahead)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        found = run_storage_checks(bucket)
    assert re.fullmatch(clock, found.pop("clock"))
    if abs(ahead) < 900:  # beyond, clients sign with the shifted time
        assert set(statuses(found).values()) == {"ok"}, found


def is_conditional(head: str) -> bool:
    return "\r\nif-match:" in head or "\r\nif-none-match:" in head


@integration
def test_a_store_without_conditional_writes(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_proxy(s3.endpoint, ProxyFaults(should_refuse=is_conditional)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        found = run_storage_checks(bucket)
        assert found.pop("conditional writes").startswith("warning | not supported: if two ")
        assert set(statuses(found).values()) == {"ok"}, found
        with hold_lease(f"{bucket}/run"):  # the lease works all the same
            file = conditional_file(f"{bucket}/run/{LEASE_FILE}")
            seen = file.read()
            assert seen is not None
            assert not file.compare_and_swap(None, b"mine")
            assert not file.compare_and_swap(replace(seen, etag='"0"'), b"mine")
            assert file.read() == seen
    assert storage.list_files(bucket) == []


@integration
def test_a_read_only_bucket(bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = ProxyFaults(should_refuse=lambda head: head.startswith(("put ", "post ", "delete ")))
    with run_proxy(s3.endpoint, writes) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        found = statuses(run_storage_checks(bucket))
    assert (found["bucket"], found["write"]) == ("ok", "failed")
    assert {found[n] for n in ("read", "list", "conditional writes", "round trip", "delete")} == {
        "skipped"
    }

"""Large objects are uploaded in parts: complete or not at all, and each part is retried alone."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local.s3 import S3Server
from segan import storage
from segan.errors import StorageError
from segan.storage import multipart, retry, s3
from tests.environment import temporary_environment
from tests.fault_proxy import Fault, FaultProxy, run_fault_proxy
from tests.infra.process_utils import wait_for

PART = 5 * 2**20  # the least that S3 accepts of a part that is not the last
# Every part is above half of PART: any of them may be the one that a fault cuts there.
CONTENT = random.Random(0).randbytes(4 * PART - 1000)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 50))
def test_split_keeps_every_byte(buffers: list[bytes], size: int) -> None:
    whole = b"".join(buffers)
    assert list(multipart.split(buffers, size)) == [
        whole[start : start + size] for start in range(0, len(whole), size)
    ]


@pytest.mark.parametrize("size", [64 * 2**20 + 1, 5 * 2**30, 50 * 2**40 // 320])
def test_s3_accepts_the_number_and_the_size_of_the_parts(size: int) -> None:
    part = multipart.part_bytes(size)
    assert 5 * 2**20 <= part <= 5 * 2**30
    assert -(-size // part) <= 10_000


@pytest.fixture(scope="module")
def proxy(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with (
        run_fault_proxy(s3.endpoint, tmp_path_factory.mktemp("faults")) as started,
        temporary_environment({"AWS_ENDPOINT_URL": started.endpoint}),
    ):
        yield started


@pytest.fixture
def faults(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The proxy without faults before and after the test; objects above a part are large."""
    for name in ("MULTIPART_BYTES", "PART_BYTES"):
        monkeypatch.setattr(multipart, name, PART)
    monkeypatch.setattr(retry, "INITIAL_BACKOFF_S", 0.02)
    yield proxy
    proxy.clear()


def upload(uri: str, content: bytes = CONTENT) -> tuple[str, int]:
    """Uploads from buffers whose ends are not those of the parts."""
    view, cuts = memoryview(content), [0, 1, PART + 7, PART + 8, 2 * PART, len(content)]
    return storage.write_buffers(uri, [view[a:b] for a, b in itertools.pairwise(cuts)])


def kinds(requests: list[str], uri: str) -> list[str]:
    """What was asked of an object: PUT, or the number of a part, with the fault if any."""
    key = uri.removeprefix("s3:/")
    found = []
    for request in requests:
        line, _, fault = request.partition(" !")
        method, _, target = line.partition(" ")
        path, _, query = target.partition("?")
        if path == key:
            number = next((q[11:] for q in query.split("&") if q.startswith("partNumber=")), "")
            found.append((f"part {number}" if number else method) + (f" !{fault}" if fault else ""))
    return found


@pytest.mark.integration
@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART, len(CONTENT)])
def test_an_object_of_any_size(size: int, faults: FaultProxy, bucket: str) -> None:
    content, uri = CONTENT[:size], f"{bucket}/object"
    faults.pop_requests()
    assert upload(uri, content) == (hashlib.sha256(content).hexdigest(), size)
    asked = kinds(faults.pop_requests(), uri)
    parts = [f"part {n}" for n in range(1, -(-size // PART) + 1)]
    assert sorted(asked) == sorted(["POST", "POST", *parts] if size > PART else ["PUT"])
    assert storage.read_bytes(uri) == content


@pytest.mark.integration
@pytest.mark.parametrize(
    "fault",
    [Fault("answer"), Fault("reset", after_bytes=PART // 2), Fault("cut", direction="down")],
    ids=lambda fault: fault.kind,
)
def test_a_part_that_fails_is_sent_again_and_no_other(
    fault: Fault, faults: FaultProxy, bucket: str
) -> None:
    uri = f"{bucket}/object"
    faults.pop_requests()
    faults.inject(Fault(**{**vars(fault), "request_prefix": "PUT"}))
    upload(uri)
    asked = kinds(faults.pop_requests(), uri)
    (failed,) = (kind for kind in asked if "!" in kind)
    repeated = failed.partition(" !")[0]
    assert sorted(asked) == sorted(["POST", "POST", failed, *(f"part {n}" for n in range(1, 5))])
    assert asked.index(repeated) > asked.index(failed)
    assert storage.read_bytes(uri) == CONTENT


@pytest.mark.integration
def test_a_failed_upload_leaves_nothing(faults: FaultProxy, bucket: str) -> None:
    uri = f"{bucket}/object"
    storage.write_bytes(uri, b"before")
    faults.inject(
        Fault("answer", times=None, request_prefix="PUT", status=403, code="AccessDenied")
    )
    with pytest.raises(StorageError, match="access denied"):
        upload(uri)
    faults.clear()
    assert storage.read_bytes(uri) == b"before"
    name = bucket.removeprefix("s3://")
    assert not s3.shared_client().list_multipart_uploads(Bucket=name).get("Uploads")


@pytest.mark.integration
def test_a_lost_answer_to_the_last_request(faults: FaultProxy, bucket: str) -> None:
    """The upload is completed; asked again, the store knows no such upload."""
    uri = f"{bucket}/object"
    content = bytes(reversed(CONTENT))
    faults.inject(
        Fault("reset", request_prefix=f"POST {uri.removeprefix('s3:/')}?uploadId", direction="down")
    )
    upload(uri, content)
    assert storage.read_bytes(uri) == content


@pytest.mark.integration
def test_several_parts_are_under_way_at_once(faults: FaultProxy, bucket: str) -> None:
    """The first part hangs until the others have been asked for."""
    uri, asked = f"{bucket}/object", list[str]()
    faults.pop_requests()
    faults.inject(Fault("hang", request_prefix="PUT", after_bytes=1000, seconds=50))

    def all_parts_are_asked_for() -> bool:
        asked.extend(kind for kind in kinds(faults.pop_requests(), uri) if "part" in kind)
        return len(asked) == 4

    with ThreadPoolExecutor(1) as pool:
        uploaded = pool.submit(upload, uri)
        assert wait_for(all_parts_are_asked_for, 40)
        assert not uploaded.done()
        faults.clear()
        assert uploaded.result(40) == (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    assert storage.read_bytes(uri) == CONTENT


@pytest.mark.slow
@pytest.mark.integration
def test_an_object_above_five_gibibytes(bucket: str) -> None:
    """More than one PUT may have; from buffers that take no memory."""
    gibibyte = memoryview(bytes(2**30))
    buffers = [*(gibibyte for _ in range(5)), memoryview(b"the end")]
    sha, size = storage.write_buffers(f"{bucket}/large", buffers)
    assert size == storage.file_size(f"{bucket}/large") == 5 * 2**30 + 7
    assert storage.file_sha256(f"{bucket}/large") == sha
    storage.delete_file(f"{bucket}/large")

"""Calls with limits of CPU time and memory."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest

from segan.data.archive.images import read_image_size
from segan.errors import RejectedError
from segan.utils.sandbox import LimitExceededError, Sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    found = Sandbox(2, cpu_seconds=1.0, memory_bytes=2**28)
    yield found
    found.close()


def test_a_call_returns_its_result_from_another_process(sandbox: Sandbox) -> None:
    assert sandbox.call(divmod, 17, 5) == (3, 2)
    assert sandbox.call(os.getpid) != os.getpid()
    assert sandbox.call(os.getpid) == sandbox.call(os.getpid)


def test_an_error_is_raised_and_the_process_stays(sandbox: Sandbox) -> None:
    before = sandbox.call(os.getpid)
    with pytest.raises(RejectedError, match=r"^a\.jpg: expected an image, found an empty file$"):
        sandbox.call(read_image_size, "a.jpg", b"")
    assert sandbox.call(os.getpid) == before


def test_a_call_that_computes_too_long_ends_with_its_process(sandbox: Sandbox) -> None:
    """Also within C code, which Python could not interrupt."""
    before = sandbox.call(os.getpid)
    with pytest.raises(LimitExceededError, match="more CPU time than allowed"):
        sandbox.call(hashlib.pbkdf2_hmac, "sha256", b"", b"", 10**9)
    assert not psutil.pid_exists(before)
    assert sandbox.call(divmod, 17, 5) == (3, 2)


def test_waiting_is_not_counted(sandbox: Sandbox) -> None:
    assert sandbox.call(time.sleep, 1.5) is None


def test_a_call_that_allocates_too_much_fails_alone(sandbox: Sandbox) -> None:
    assert sandbox.call(np.ones, 2**20).size == 2**20
    with pytest.raises(MemoryError):
        sandbox.call(np.ones, 2**28)
    assert sandbox.call(divmod, 17, 5) == (3, 2)


def test_a_killed_process_is_replaced(sandbox: Sandbox) -> None:
    with pytest.raises(LimitExceededError):
        sandbox.call(os._exit, 9)
    assert sandbox.call(divmod, 17, 5) == (3, 2)


def test_at_most_as_many_processes_as_asked_for(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(6) as pool:
        pids = set(pool.map(lambda _: sandbox.call(os.getpid), range(30)))
    assert 1 <= len(pids) <= 2


def test_its_processes_end_with_it() -> None:
    sandbox = Sandbox(1, 1.0, 2**28)
    pid = sandbox.call(os.getpid)
    sandbox.close()
    assert not psutil.pid_exists(pid)

"""The lease of a run: real processes compete for it, in a folder and in a real S3 server."""

import json
import os
import pickle
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local.s3 import s3_server
from segan import storage
from segan.errors import LeaseLostError, SeganError, StorageError, UsageError
from segan.storage.compare_and_swap import FileVersion, conditional_file
from segan.storage.lease import (
    LEASE_FILE,
    Holder,
    LeaseConfig,
    current_fence,
    hold_lease,
    no_fence,
    read_holder,
)
from tests.drivers import Driver

ROUNDS = 20
HEARTBEAT_S, TTL_S = 0.2, 1.5
SHORT_LEASE = LeaseConfig(HEARTBEAT_S, TTL_S, 0.1)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.integration)])
def run_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of a run that does not exist yet."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/runs/first"
    return str(tmp_path / "runs" / "first")


@pytest.fixture
def start_driver() -> Iterator[Callable[..., Driver]]:
    """Starts drivers, which are killed at the end of the test."""
    started = []

    def start(*timing: float) -> Driver:
        started.append(Driver.start(*(timing or (HEARTBEAT_S, TTL_S, 0.1))))
        return started[-1]

    yield start
    for driver in started:
        driver.kill()


def read_lease(run: str) -> dict[str, Any]:
    found: dict[str, Any] = storage.read_json(storage.join(run, LEASE_FILE))
    return found


def write_lease(run: str, lease: Holder, heartbeat_monotonic_s: float = 0.0) -> None:
    storage.write_json(
        storage.join(run, LEASE_FILE),
        vars(lease) | {"heartbeat_monotonic_s": heartbeat_monotonic_s},
    )


def remote_holder(**changes: Any) -> Holder:
    """A holder on another host, with a PID that is in use on this host."""
    far: dict[str, Any] = {
        "host": "far-away",
        "host_id": "far-away boot pid",
        "lease_id": "another",
    }
    return replace(Holder.current_process(), **(far | changes))


def wait_for(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@contextmanager
def repeat_every(seconds: float, callback: Callable[[int], None]) -> Iterator[None]:
    over = threading.Event()

    def repeat() -> None:
        turn = 0
        while not over.wait(seconds):
            callback(turn := turn + 1)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# Acquiring the lease


def test_of_two_simultaneous_starts_exactly_one_gets_the_lease(
    run_uri: str, start_driver: Callable[..., Driver]
) -> None:
    drivers = [start_driver(*vars(LeaseConfig()).values()) for _ in range(2)]
    for number, driver in enumerate(drivers):  # has imported everything
        assert driver.hold(f"{run_uri}-warm-{number}") == "held"
        driver.send("done")
        assert driver.read_line() == "released"
    for number in range(ROUNDS):
        place = f"{run_uri}-{number}"
        moment = time.monotonic() + 0.1
        for driver in drivers:
            driver.send(place, moment)
        said = [driver.read_line() for driver in drivers]
        (winner,) = [i for i, words in enumerate(said) if words == "held"]
        loser = said[1 - winner]
        pid = drivers[winner].process.pid
        pattern = (
            rf"UsageError {place}: locked by process {pid} on {socket.gethostname()} since "
            r"20\d\d-\S+, last heartbeat \d+ s ago; use another name, or stop it first"
        )
        assert re.fullmatch(pattern, loser), loser
        drivers[winner].send("done")
        assert drivers[winner].read_line() == "released"
        assert storage.list_files(place) == []


def test_a_killed_holder_is_replaced_at_once(
    run_uri: str, start_driver: Callable[..., Driver], caplog: pytest.LogCaptureFixture
) -> None:
    first = start_driver()
    assert first.hold(run_uri) == "held"
    first.kill()
    assert read_lease(run_uri)["pid"] == first.process.pid
    with hold_lease(run_uri):
        assert caplog.messages == []  # it says so when it waits for the TTL
        assert read_lease(run_uri)["pid"] == os.getpid()


def test_a_zombie_holds_no_lease(tmp_path: Path, start_driver: Callable[..., Driver]) -> None:
    first = start_driver()
    assert first.hold(str(tmp_path)) == "held"
    first.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)  # leaves it a zombie
    with hold_lease(str(tmp_path)):
        pass


def test_a_reused_pid_is_not_the_holder(tmp_path: Path) -> None:
    write_lease(str(tmp_path), replace(Holder.current_process(), lease_id="another", start_ticks=1))
    with hold_lease(str(tmp_path)):
        pass


def test_a_suspended_holder_is_replaced_and_stops_when_resumed(
    run_uri: str, start_driver: Callable[..., Driver]
) -> None:
    first, second = start_driver(), start_driver()
    assert first.hold(run_uri) == "held"
    first.send_signal(signal.SIGSTOP)
    time.sleep(2 * HEARTBEAT_S)  # a holder with a more recent heartbeat counts as alive
    began = time.monotonic()
    assert second.hold(run_uri) == "held"
    assert time.monotonic() - began > TTL_S
    first.send_signal(signal.SIGCONT)
    said = first.read_line()
    message = f"{run_uri}: lease lost to process {second.process.pid} on "
    assert said.startswith(f"LeaseLostError {message}")
    assert read_lease(run_uri)["pid"] == second.process.pid
    second.send("done")
    assert second.read_line() == "released"
    assert storage.list_files(run_uri) == []


def test_a_fence_holds_until_another_driver_has_the_lease(
    run_uri: str, start_driver: Callable[..., Driver]
) -> None:
    assert current_fence(run_uri) is no_fence
    with hold_lease(run_uri):
        # In the form in which a worker gets it.
        fence = pickle.loads(pickle.dumps(current_fence(f"{run_uri}/trials/first")))
        assert fence == current_fence(run_uri)
        fence()
        storage.delete_file(f"{run_uri}/{LEASE_FILE}")
        fence()  # the next heartbeat writes it again
    fence()  # its driver has ended, and nobody has the run
    driver = start_driver()
    assert driver.hold(run_uri) == "held"
    with pytest.raises(
        LeaseLostError, match=f"^{run_uri}: lease lost to process .*{driver.process.pid} on "
    ):
        fence()


# Holders on another host


def test_a_remote_holder_without_heartbeats_is_replaced_after_the_ttl(
    run_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_lease(run_uri, remote_holder())
    began = time.monotonic()
    with hold_lease(run_uri, SHORT_LEASE):
        assert time.monotonic() - began > TTL_S
        assert read_lease(run_uri)["pid"] == os.getpid()
        assert read_lease(run_uri)["host"] == socket.gethostname()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{run_uri}: locked by process {os.getpid()} on far-away since ")
    assert said.endswith("taking over if there is no heartbeat for 1.5 s")


def test_a_remote_holder_with_heartbeats_keeps_the_lease(run_uri: str) -> None:
    far = remote_holder(submission_id="raysubmit_1", ray_address="10.0.0.1:6379")
    write_lease(run_uri, far)
    with (
        repeat_every(0.5, lambda turn: write_lease(run_uri, far, heartbeat_monotonic_s=turn)),
        pytest.raises(UsageError) as refusal,
        hold_lease(run_uri, replace(SHORT_LEASE, ttl_s=30)),
    ):
        pass
    assert str(refusal.value) == (
        f"{run_uri}: locked by process {os.getpid()} on far-away, Ray job raysubmit_1 of the "
        f"cluster 10.0.0.1:6379 since {far.acquired_at}, last heartbeat just now; use another "
        "name, or ray job stop raysubmit_1 first"
    )
    assert read_lease(run_uri)["host"] == "far-away"


def test_a_lease_released_by_a_remote_holder_is_taken_at_once(run_uri: str) -> None:
    write_lease(run_uri, remote_holder())
    timer = threading.Timer(0.5, lambda: storage.delete_file(storage.join(run_uri, LEASE_FILE)))
    timer.start()
    with hold_lease(run_uri, replace(SHORT_LEASE, ttl_s=1e6)):  # longer than a test may last
        timer.join()


@given(content=st.binary() | st.from_type(dict).map(lambda d: repr(d).encode()))
def test_an_invalid_lease_file_has_an_unknown_holder(content: bytes) -> None:
    assert Holder.from_version(FileVersion(content, "")) == Holder()


@given(
    st.dictionaries(
        st.sampled_from(list(vars(Holder()))),
        st.none() | st.text() | st.floats() | st.lists(st.none()),
    )
)
def test_values_of_a_lease_file_have_their_declared_types(values: dict[str, Any]) -> None:
    found = Holder.from_version(FileVersion(json.dumps(values).encode(), ""))
    assert [type(v) for v in vars(found).values()] == [type(v) for v in vars(Holder()).values()]


def test_an_invalid_lease_file_is_replaced_after_the_ttl(tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).write_text("{")
    began = time.monotonic()
    with hold_lease(str(tmp_path), SHORT_LEASE):
        assert time.monotonic() - began > TTL_S


# Release


@pytest.mark.parametrize(
    ("word", "said"), [("done", "released"), ("fail", "RuntimeError as requested")]
)
def test_the_lease_is_released_at_the_end_and_after_an_error(
    run_uri: str, start_driver: Callable[..., Driver], word: str, said: str
) -> None:
    driver = start_driver()
    assert driver.hold(run_uri) == "held"
    assert read_holder(run_uri) == Holder.from_version(
        FileVersion(json.dumps(read_lease(run_uri)).encode(), "")
    )
    driver.send(word)
    assert driver.read_line() == said
    assert read_holder(run_uri) is None
    assert storage.list_files(run_uri) == []


def test_the_lease_is_released_at_ctrl_c(run_uri: str, start_driver: Callable[..., Driver]) -> None:
    driver = start_driver()
    assert driver.hold(run_uri) == "held"
    driver.send_signal(signal.SIGINT)
    assert driver.read_line().startswith("KeyboardInterrupt")
    assert storage.list_files(run_uri) == []


def test_a_folder_created_for_the_lease_alone_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold_lease(str(tmp_path / "run")):
        raise RuntimeError
    with hold_lease(str(tmp_path / "used")):
        (tmp_path / "used" / "run.json").touch()
    (tmp_path / "there").mkdir()
    with hold_lease(str(tmp_path / "there")):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "used"]


# Heartbeats, nesting and content


def test_heartbeats_renew_the_lease(run_uri: str) -> None:
    with hold_lease(run_uri, SHORT_LEASE):
        before = read_lease(run_uri)
        assert wait_for(
            20,
            lambda: (
                read_lease(run_uri)["heartbeat_monotonic_s"]
                >= before["heartbeat_monotonic_s"] + 4 * HEARTBEAT_S
            ),
        )
        assert read_lease(run_uri)["lease_id"] == before["lease_id"]


def test_a_deleted_lease_file_is_written_again(run_uri: str) -> None:
    with hold_lease(run_uri, SHORT_LEASE):
        storage.delete_file(storage.join(run_uri, LEASE_FILE))
        assert wait_for(20, lambda: storage.exists(storage.join(run_uri, LEASE_FILE)))
        assert read_lease(run_uri)["pid"] == os.getpid()


@pytest.mark.integration
def test_the_lease_survives_a_store_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(tmp_path) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.create_bucket("silent")
        with hold_lease("s3://silent/run", SHORT_LEASE):
            os.kill(server.pid, signal.SIGSTOP)
            time.sleep(2 * TTL_S)
            os.kill(server.pid, signal.SIGCONT)
            again = time.monotonic()
            assert wait_for(
                20, lambda: read_lease("s3://silent/run")["heartbeat_monotonic_s"] > again
            )


def test_the_lease_is_reentrant_in_one_thread_only(tmp_path: Path) -> None:
    run, refused = str(tmp_path), []

    def other() -> None:
        try:
            with hold_lease(run):
                pass
        except UsageError as error:
            refused.append(str(error))

    with hold_lease(run):
        with hold_lease(f"{run}/"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert read_lease(run)["pid"] == os.getpid()
    (message,) = refused
    assert f"locked by process {os.getpid()} on " in message


def test_the_lease_of_a_trial_is_its_studys(
    tmp_path: Path, start_driver: Callable[..., Driver]
) -> None:
    study, trial = str(tmp_path / "k"), str(tmp_path / "k" / "trials" / "trial_000")
    storage.write_json(f"{study}/study.json", {})
    driver = start_driver()
    assert driver.hold(trial) == "held"
    with pytest.raises(UsageError, match=f"^{study}: locked by"), hold_lease(study):
        pass
    driver.send("done")
    assert driver.read_line() == "released"
    with hold_lease(study), hold_lease(trial):
        assert driver.hold(trial).startswith(f"UsageError {study}: locked by")


def test_a_run_in_a_folder_named_trials_has_its_own_lease(tmp_path: Path) -> None:
    with hold_lease(str(tmp_path / "trials" / "first")):
        assert (tmp_path / "trials" / "first" / LEASE_FILE).exists()


def test_the_lease_names_its_ray_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"runtime_env": {"env_vars": {"A": "b"}}, "metadata": {"job_submission_id": "nightly"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(said))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with hold_lease(str(tmp_path)):
        assert (
            read_lease(str(tmp_path))["submission_id"],
            read_lease(str(tmp_path))["ray_address"],
        ) == (
            "nightly",
            "10.0.0.1:6379",
        )


# Compare-and-swap, the basis of the lease


def test_of_simultaneous_swaps_exactly_one_succeeds(run_uri: str) -> None:
    uri = storage.join(run_uri, "file")
    files = [conditional_file(uri) for _ in range(8)]
    for _ in range(5):
        seen = files[0].read()
        barrier, done = threading.Barrier(len(files)), list[int]()

        def change(
            number: int, seen: FileVersion | None = seen, barrier: Any = barrier, done: Any = done
        ) -> None:
            barrier.wait()
            if files[number].compare_and_swap(seen, f"by {number} after {seen}".encode()):
                done.append(number)

        threads = [threading.Thread(target=change, args=(i,)) for i in range(len(files))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = done
        found = files[0].read()
        assert found is not None
        assert found.content == f"by {winner} after {seen}".encode()


def test_only_the_expected_version_is_replaced_or_deleted(run_uri: str) -> None:
    file = conditional_file(storage.join(run_uri, "file"))
    assert file.read() is None
    assert file.compare_and_swap(None, b"one")
    one = file.read()
    assert one is not None
    assert not file.compare_and_swap(None, b"two")
    assert file.compare_and_swap(one, b"two, and longer")
    assert not file.compare_and_swap(one, b"three")
    assert not file.compare_and_delete(one)
    two = file.read()
    assert two is not None
    assert two.content == b"two, and longer"
    assert file.compare_and_swap(two, b"2")
    two = file.read()
    assert two is not None
    assert two.content == b"2"
    assert file.compare_and_delete(two)
    assert not file.compare_and_delete(two)
    assert not file.compare_and_swap(two, b"three")
    assert storage.list_files(run_uri) == [] or not storage.is_s3(run_uri)


@pytest.mark.integration
def test_a_missing_bucket_is_reported(bucket: str) -> None:
    with (
        pytest.raises(StorageError, match="bucket does not exist"),
        hold_lease(f"{bucket}-else/run"),
    ):
        pass


def test_waiting_for_a_file_lock_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("segan.storage.compare_and_swap.LOCK_TIMEOUT_S", 0.3)
    path = tmp_path / LEASE_FILE
    path.write_text("{}")
    with path.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with (
            pytest.raises(StorageError, match=r"locked by another process for 0\.3 s"),
            hold_lease(str(tmp_path)),
        ):
            pass


def test_a_name_that_is_too_long_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError, match=r"/lease\.json: File name too long"),
        hold_lease(str(tmp_path / ("n" * 300))),
    ):
        pass


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(SeganError, match=r"file/run/lease\.json: Not a directory"),
        hold_lease(str(tmp_path / "file" / "run")),
    ):
        pass

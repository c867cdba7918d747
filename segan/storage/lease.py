"""One driver at a time for a run or a study, wherever its place in storage is.

Who trains keeps `lease.json` in the place and changes it every few seconds, a beat. Another who
comes is refused while it beats. A beat that stays away for the lease's time means that the holder
is gone, and the other takes the lease over; on the holder's own host a look at its process tells
at once. Clocks of other machines are not believed: what counts is whether the file changes while
it is watched. A holder who finds that another has taken over stops by itself.

Held by drivers only: Ray's workers are their driver's, and trials are held through their study.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from segan import storage
from segan.errors import SeganError, StorageError, UsageError
from segan.storage.compare_and_swap import FileVersion, conditional_file

logger = logging.getLogger(__name__)

LEASE_FILE = "lease.json"
LEASE_LOST_SIGNAL = signal.SIGUSR2  # from the beating thread to the main one: the lease is lost

_held_uris: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())


@dataclass(frozen=True)
class LeaseConfig:
    """Seconds: between beats, without one until a lease is taken over, between looks at it."""

    heartbeat_interval_s: float = 10.0
    ttl_s: float = 40.0
    poll_interval_s: float = 1.0


@dataclass(frozen=True)
class Holder:
    """Who has a lease, as its file says.

    Attributes:
        owner: random, another one for each time that a lease is taken.
        machine: names the boot of the host and its process ids; empty where that is not known.
        started: of the process, in its system's own count, so that a pid used again is told apart.
        clock: seconds by the host's monotonic clock at the last beat.
        job: as `ray job stop` names it; `cluster` its address.
        since, beat: moments in UTC, by the holder's clock, for people alone.
    """

    lease_id: str = ""
    host: str = "a host unknown"
    host_id: str = ""
    pid: int = 0
    start_ticks: int = 0
    heartbeat_monotonic_s: float = 0.0
    ray_address: str = ""
    submission_id: str = ""
    acquired_at: str = "a time unknown"
    heartbeat_at: str = ""

    @classmethod
    def from_version(cls, version: FileVersion) -> Holder:
        """From a lease's file; of one that cannot be read nobody knows whose it is."""
        try:
            found = json.loads(version.content)
            known = {name: found[name] for name in (f.name for f in fields(cls)) if name in found}
            return cls(**{n: type(getattr(cls, n))(value) for n, value in known.items()})
        except (ValueError, TypeError):
            return cls()

    @classmethod
    def current_process(cls) -> Holder:
        """This process, as the holder of a new lease."""
        return cls(
            lease_id=uuid4().hex,
            host=socket.gethostname(),
            host_id=_host_id(),
            pid=os.getpid(),
            start_ticks=_start_ticks(os.getpid()) or 0,
            ray_address=os.environ.get("RAY_ADDRESS", ""),
            submission_id=_ray_submission_id(),
            acquired_at=_utc_now(),
        )

    def __str__(self) -> str:
        within = f", Ray job {self.submission_id}" if self.submission_id else ""
        within += f" of the cluster {self.ray_address}" if self.ray_address else ""
        return f"process {self.pid} on {self.host}{within}"

    @property
    def is_on_this_host(self) -> bool:
        """Whether this process can see the holder's."""
        return bool(self.host_id) and self.host_id == _host_id()

    @property
    def has_exited(self) -> bool:
        """Whether its process is known to have ended."""
        return self.is_on_this_host and not _is_running(self.pid, self.start_ticks)

    @property
    def seconds_since_heartbeat(self) -> float | None:
        """Seconds since its last beat; None where its clock is not ours."""
        return time.monotonic() - self.heartbeat_monotonic_s if self.is_on_this_host else None


@contextlib.contextmanager
def hold_lease(uri: str, config: LeaseConfig | None = None) -> Iterator[None]:
    """Keeps every other driver off a run or a study while the block runs.

    Inside the block it may be asked for again by the same thread, which changes nothing.

    Raises:
        UsageError: another process holds it.
        SeganError: another took it over, because this process gave no sign for too long.
        StorageError: the place cannot be read or written.
    """
    asked = storage.normalise(uri)
    if {asked, parent_study_uri(asked)} & _held_uris.get():
        yield
        return
    storage.check_access(asked)
    place = _lease_uri(asked)
    with _Lease(place, config or LeaseConfig()).hold():
        before = _held_uris.set(_held_uris.get() | {asked, place})
        try:
            yield
        finally:
            _held_uris.reset(before)


def read_holder(uri: str) -> Holder | None:
    """Who holds the run or study at a URI, unless it is known that they are gone."""
    version = conditional_file(storage.join(storage.normalise(uri), LEASE_FILE)).read()
    found = Holder.from_version(version) if version else None
    return None if found is None or found.has_exited else found


def parent_study_uri(run_uri: str) -> str | None:
    """The place of the study that has a run in its trials, by the names alone."""
    study_uri, _, folder = run_uri.rpartition("/")[0].rpartition("/")
    return study_uri if folder == "trials" else None


def _lease_uri(uri: str) -> str:
    study = parent_study_uri(uri)
    if study and storage.exists(storage.join(study, "study.json")):
        return study
    return uri


@dataclass
class _Lease:
    """This process's hold on a place, or its attempt at one."""

    uri: str
    config: LeaseConfig
    holder: Holder = field(default_factory=Holder.current_process)
    lost_error: SeganError | None = None
    stop_event: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        uri = storage.join(self.uri, LEASE_FILE)
        self.created_folder = not storage.is_s3(uri) and not Path(self.uri).exists()
        self.file, self.quick_file = conditional_file(uri), conditional_file(uri, quick=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        try:
            while not self._try_acquire():
                pass
            with self._handle_lease_lost(), self._heartbeat_thread():
                yield
        except BaseException as error:
            if self.lost_error and error is not self.lost_error:
                raise self.lost_error from error
            raise
        finally:
            if not self.lost_error:
                self._release()
        if self.lost_error:
            raise self.lost_error

    def _try_acquire(self) -> bool:
        """Writes the lease, if need be after watching another's; False when somebody was quicker.

        A request that was repeated because its first answer got lost can be told to be too late
        by what it itself wrote: then the lease that the next look finds is ours.
        """
        found = self.file.read()
        if found is None:
            return self.file.compare_and_swap(None, self._encode())
        other = Holder.from_version(found)
        if other.lease_id == self.holder.lease_id:
            return True
        if not other.has_exited:
            self._raise_if_alive(other)
            found = self._wait_for_expiry(found)
        return self.file.compare_and_swap(found, self._encode())

    def _raise_if_alive(self, holder: Holder) -> None:
        if (
            holder.seconds_since_heartbeat is not None
            and holder.seconds_since_heartbeat < 2 * self.config.heartbeat_interval_s
        ):
            raise self._held_error(holder, f"{max(holder.seconds_since_heartbeat, 0):.0f} s ago")

    def _wait_for_expiry(self, expected: FileVersion) -> FileVersion | None:
        """Returns what is to be replaced when the holder has given no sign for the lease's time."""
        other, until = Holder.from_version(expected), time.monotonic() + self.config.ttl_s
        logger.warning(
            f"{self.uri}: held by {other} since {other.acquired_at}; taken over if no sign of it "
            f"comes in {self.config.ttl_s:g} s"
        )
        while time.monotonic() < until:
            time.sleep(self.config.poll_interval_s)
            now = self.file.read()
            if now is None or Holder.from_version(now).has_exited:
                return now
            if now != expected:
                raise self._held_error(Holder.from_version(now), "just now")
        return expected

    def _held_error(self, holder: Holder, last_heartbeat: str) -> UsageError:
        stop = f"ray job stop {holder.submission_id}" if holder.submission_id else "stop that one"
        return UsageError(
            f"{self.uri}: held by {holder} since {holder.acquired_at}, last sign "
            f"{last_heartbeat}; use another "
            f"name, or {stop} first"
        )

    @contextlib.contextmanager
    def _heartbeat_thread(self) -> Iterator[None]:
        beating = threading.Thread(target=self._heartbeat_loop, name="lease", daemon=True)
        beating.start()
        try:
            yield
        finally:
            self.stop_event.set()
            beating.join()  # a beat is one quick request or two

    def _heartbeat_loop(self) -> None:
        while not self.lost_error and not self.stop_event.wait(self.config.heartbeat_interval_s):
            # A store that does not answer for a while is no reason to stop: others cannot take
            # the lease over by it either.
            with contextlib.suppress(StorageError):
                self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        found = self.quick_file.read()
        other = Holder.from_version(found) if found else self.holder
        if other.lease_id == self.holder.lease_id:
            # Where somebody else comes in between, the next beat finds them. Where the file is
            # gone it is written again: nobody else has the lease.
            self.quick_file.compare_and_swap(found, self._encode())
            return
        self.lost_error = SeganError(
            f"{self.uri}: taken over by {other} at {other.acquired_at}, because this process had "
            "given no sign for too long; it stops here, and the other goes on"
        )
        if self._signals_main_thread:
            signal.pthread_kill(threading.main_thread().ident or 0, LEASE_LOST_SIGNAL)

    @contextlib.contextmanager
    def _handle_lease_lost(self) -> Iterator[None]:
        """The main thread stops when the lease is lost; another one finds out when it is done."""
        self._signals_main_thread = threading.current_thread() is threading.main_thread()
        if not self._signals_main_thread:
            yield
            return
        before = signal.signal(LEASE_LOST_SIGNAL, self._on_lease_lost)
        try:
            yield
        finally:
            signal.signal(LEASE_LOST_SIGNAL, before)

    def _on_lease_lost(self, _: int, frame: Any) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt) and interrupt is not signal.default_int_handler:
            interrupt(signal.SIGINT, frame)  # while Ray Train is at work, its own orderly way
        elif self.lost_error:
            raise self.lost_error

    def _release(self) -> None:
        # Where the store does not answer, the file stays; it no longer beats, and is taken over.
        with contextlib.suppress(StorageError):
            found = self.quick_file.read()
            if found and Holder.from_version(found).lease_id == self.holder.lease_id:
                self.quick_file.compare_and_delete(found)
        if self.created_folder:
            with contextlib.suppress(OSError):  # a run that never began leaves no empty folder
                Path(self.uri).rmdir()

    def _encode(self) -> bytes:
        content = asdict(self.holder) | {
            "heartbeat_monotonic_s": time.monotonic(),
            "heartbeat_at": _utc_now(),
        }
        return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ray_submission_id() -> str:
    """The id of the Ray job that this process is the driver of; nothing else of what Ray says."""
    try:
        said = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(said["metadata"]["job_submission_id"])
    except (ValueError, LookupError, TypeError):
        return ""


def _host_id() -> str:
    """This boot of this host and the process ids that are valid here: a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_running(pid: int, start_ticks: int) -> bool:
    """Whether this very process is there; a zombie is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_ticks(pid) in (None, start_ticks)


def _start_ticks(pid: int) -> int | None:
    """When a process began, in ticks since boot; 0 of one that has ended, None where unknown."""
    try:
        # The name, in brackets, can hold anything: what follows it begins with the state.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if words[0] in "ZX" else int(words[19])

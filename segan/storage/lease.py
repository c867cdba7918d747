"""A lease that gives a place in storage one writer at a time.

A place is a run, a study, records, an ensemble or any other output. Its driver writes `lease.json`
into the folder and renews it every few seconds (a heartbeat). Another driver is rejected while the
heartbeat continues, and takes the lease over after `ttl_s` seconds without one; on the same host,
as soon as the holder's process has exited. Clocks of different hosts are not compared: what counts
is whether the file changes while it is polled. A driver that finds its lease taken over stops.

Only drivers take leases: trials are covered by the lease of their study, and Ray workers get a
`Fence` from their driver. It is checked before they write or delete anything, since they can
outlive a driver that was frozen or killed.
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
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter

from segan import storage
from segan.errors import LeaseLostError, StorageError, UsageError
from segan.storage.compare_and_swap import FileVersion, conditional_file
from segan.storage.files import os_errors

logger = logging.getLogger(__name__)

LEASE_FILE = "lease.json"
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set in the driver of a Ray job
LEASE_LOST_SIGNAL = signal.SIGUSR2  # from the heartbeat thread to the main thread


@dataclass(frozen=True)
class LeaseConfig:
    """Intervals in seconds; `ttl_s` without a heartbeat end a lease."""

    heartbeat_interval_s: float = 10.0
    ttl_s: float = 40.0
    poll_interval_s: float = 1.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lease, as `lease.json` describes it.

    Attributes:
        lease_id: random, new each time a lease is taken.
        host_id: identifies the host's boot and its PID namespace; empty if unknown.
        start_ticks: when the process started, in clock ticks since boot; tells a reused PID apart.
        heartbeat_monotonic_s: the host's monotonic clock at the last heartbeat.
        submission_id: of the Ray job, as `ray job stop` takes it; empty outside of a job.
        acquired_at, heartbeat_at: UTC times by the holder's clock, for display only.
    """

    lease_id: str = ""
    host: str = "an unknown host"
    host_id: str = ""
    pid: int = 0
    start_ticks: int = 0
    heartbeat_monotonic_s: float = 0.0
    ray_address: str = ""
    submission_id: str = ""
    acquired_at: str = "an unknown time"
    heartbeat_at: str = ""

    @classmethod
    def from_version(cls, version: FileVersion) -> Holder:
        """Parses a lease file; an invalid one gives a holder with default values."""
        try:
            return TypeAdapter(cls).validate_json(version.content)
        except ValueError:
            return cls()

    @classmethod
    def current_process(cls) -> Holder:
        """Returns this process as the holder of a new lease."""
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
        job = f", Ray job {self.submission_id}" if self.submission_id else ""
        job += f" of the cluster {self.ray_address}" if self.ray_address else ""
        return f"process {self.pid} on {self.host}{job}"

    @property
    def is_on_this_host(self) -> bool:
        """Whether the holder's PID is valid in this process."""
        return bool(self.host_id) and self.host_id == _host_id()

    @property
    def has_exited(self) -> bool:
        """Whether the holder's process is known to have ended."""
        return self.is_on_this_host and not _is_running(self.pid, self.start_ticks)

    @property
    def seconds_since_heartbeat(self) -> float | None:
        """Seconds since the last heartbeat; None on another host, whose clock differs."""
        if not self.is_on_this_host:
            return None
        return max(time.monotonic() - self.heartbeat_monotonic_s, 0.0)


@dataclass(frozen=True)
class Fence:
    """Checks that a lease is still that of the driver which took it. Can be sent to its workers."""

    uri: str
    lease_id: str

    def __call__(self) -> None:
        """Raises LeaseLostError if another driver has taken the lease over."""
        version = conditional_file(storage.join(self.uri, LEASE_FILE)).read()
        # A deleted file is written again by the next heartbeat.
        if version and (holder := Holder.from_version(version)).lease_id != self.lease_id:
            raise LeaseLostError(
                f"{self.uri}: lease lost to {holder} at {holder.acquired_at}; stopping before "
                "anything is written"
            )


# The fence of each place that this process holds, by URI.
_held: ContextVar[Mapping[str, Fence]] = ContextVar("held", default=MappingProxyType({}))


def no_fence() -> None:
    """The fence of a place that nobody holds."""


@contextlib.contextmanager
def hold_lease(uri: str, config: LeaseConfig | None = None) -> Iterator[None]:
    """Keeps all other drivers from a place while the block runs; reentrant in a thread.

    Raises:
        UsageError: another process holds the lease.
        LeaseLostError: another process took the lease over after this one missed its heartbeats.
        StorageError: the folder cannot be read or written.
    """
    requested = storage.normalise(uri)
    if current_fence(requested) is not no_fence:
        yield
        return
    storage.check_access(requested)
    lease = _Lease(_lease_uri(requested), config or LeaseConfig())
    with lease.hold():
        fence = Fence(lease.uri, lease.holder.lease_id)
        token = _held.set({**_held.get(), requested: fence, lease.uri: fence})
        try:
            yield
        finally:
            _held.reset(token)


def current_fence(uri: str) -> Callable[[], None]:
    """The fence of the lease with which this thread holds a place; `no_fence` without one."""
    requested, held = storage.normalise(uri), _held.get()
    return held.get(requested) or held.get(parent_study_uri(requested) or "") or no_fence


def read_holder(uri: str) -> Holder | None:
    """Returns the holder of a place; None if nobody holds it or the holder has exited."""
    version = conditional_file(storage.join(storage.normalise(uri), LEASE_FILE)).read()
    holder = Holder.from_version(version) if version else None
    return None if holder is None or holder.has_exited else holder


def read_driver(uri: str) -> Holder | None:
    """Returns the holder of a study, or of a run or the study that it is a trial of, as above."""
    study = parent_study_uri(storage.normalise(uri))
    return read_holder(uri) or (read_holder(study) if study else None)


def parent_study_uri(run_uri: str) -> str | None:
    """Returns the URI of the study that a run is a trial of, judged by the path alone."""
    study_uri, _, folder = run_uri.rpartition("/")[0].rpartition("/")
    return study_uri if folder == "trials" else None


def _lease_uri(uri: str) -> str:
    study = parent_study_uri(uri)
    if study and storage.exists(storage.join(study, "study.json")):
        return study
    return uri


@dataclass
class _Lease:
    """This process's lease on a place, from the first attempt to its release."""

    uri: str
    config: LeaseConfig
    holder: Holder = field(default_factory=Holder.current_process)
    lost_error: LeaseLostError | None = None
    stop_event: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        uri = storage.join(self.uri, LEASE_FILE)
        with os_errors(uri):
            self.created_folder = not storage.is_s3(uri) and not Path(self.uri).exists()
        self.file, self.quick_file = conditional_file(uri), conditional_file(uri, quick=True)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        try:
            while not self._try_acquire():
                pass
            with self._heartbeats():
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
        """Writes the lease, once another holder's has expired; False if another process was faster.

        A write whose response is lost is repeated, and then fails on what it wrote itself: the
        next attempt finds this process's own lease.
        """
        version = self.file.read()
        if version is not None:
            holder = Holder.from_version(version)
            if holder.lease_id == self.holder.lease_id:
                return True
            if not holder.has_exited:
                version = self._wait_for_expiry(version, holder)
        return self.file.compare_and_swap(version, self._encode())

    def _wait_for_expiry(self, version: FileVersion, holder: Holder) -> FileVersion | None:
        """Returns the version to replace; raises UsageError if the holder is alive."""
        elapsed = holder.seconds_since_heartbeat
        if elapsed is not None and elapsed < 2 * self.config.heartbeat_interval_s:
            raise self._held_error(holder, f"{elapsed:.0f} s ago")
        logger.warning(
            f"{self.uri}: locked by {holder} since {holder.acquired_at}; taking over if there is "
            f"no heartbeat for {self.config.ttl_s:g} s"
        )
        deadline = time.monotonic() + self.config.ttl_s
        while time.monotonic() < deadline:
            time.sleep(self.config.poll_interval_s)
            current = self.file.read()
            if current is None or Holder.from_version(current).has_exited:
                return current
            if current != version:
                raise self._held_error(Holder.from_version(current), "just now")
        return version

    def _held_error(self, holder: Holder, last_heartbeat: str) -> UsageError:
        stop = f"ray job stop {holder.submission_id}" if holder.submission_id else "stop it"
        return UsageError(
            f"{self.uri}: locked by {holder} since {holder.acquired_at}, last heartbeat "
            f"{last_heartbeat}; use another name, or {stop} first"
        )

    @contextlib.contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Renews the lease while the block runs; a lost lease interrupts the main thread."""
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        previous = signal.getsignal(LEASE_LOST_SIGNAL)
        if self._in_main_thread:
            signal.signal(LEASE_LOST_SIGNAL, self._on_lease_lost)
        thread = threading.Thread(target=self._heartbeat_loop, name="lease", daemon=True)
        thread.start()
        try:
            try:
                yield
            finally:
                self.stop_event.set()
                thread.join()  # waits for two quick requests at most
        finally:
            if self._in_main_thread:
                signal.signal(LEASE_LOST_SIGNAL, previous)

    def _heartbeat_loop(self) -> None:
        while not self.lost_error and not self.stop_event.wait(self.config.heartbeat_interval_s):
            # While the store does not respond, nobody else can take the lease over either.
            with contextlib.suppress(StorageError):
                self._send_heartbeat()

    def _send_heartbeat(self) -> None:
        version = self.quick_file.read()
        holder = Holder.from_version(version) if version else self.holder
        if holder.lease_id == self.holder.lease_id:
            # A deleted file is written again. If another process writes first, the next heartbeat
            # finds its lease.
            self.quick_file.compare_and_swap(version, self._encode())
            return
        self.lost_error = LeaseLostError(
            f"{self.uri}: lease lost to {holder} at {holder.acquired_at} after this process missed "
            "its heartbeats; stopping"
        )
        if self._in_main_thread:
            signal.pthread_kill(threading.main_thread().ident or 0, LEASE_LOST_SIGNAL)

    def _on_lease_lost(self, _: int, frame: Any) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt) and interrupt is not signal.default_int_handler:
            interrupt(signal.SIGINT, frame)  # Ray Train's, which ends its workers
        elif self.lost_error:
            raise self.lost_error

    def _release(self) -> None:
        # If the store does not respond, the file stays and expires for lack of heartbeats.
        with contextlib.suppress(StorageError):
            version = self.quick_file.read()
            if version and Holder.from_version(version).lease_id == self.holder.lease_id:
                self.quick_file.compare_and_delete(version)
        if self.created_folder:
            with contextlib.suppress(OSError):  # not empty: the run has begun
                Path(self.uri).rmdir()

    def _encode(self) -> bytes:
        holder = replace(
            self.holder, heartbeat_monotonic_s=time.monotonic(), heartbeat_at=_utc_now()
        )
        return (json.dumps(asdict(holder), indent=2, sort_keys=True) + "\n").encode()


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _ray_submission_id() -> str:
    """Returns the submission id of the Ray job whose driver this process is, or ''."""
    try:
        job_config = json.loads(os.environ.get(RAY_JOB_VARIABLE, "{}"))
        return str(job_config["metadata"]["job_submission_id"])
    except (ValueError, LookupError, TypeError):
        return ""


def _host_id() -> str:
    """Identifies the host's boot and the PID namespace (a container has its own); '' if unknown."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot_id} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_running(pid: int, start_ticks: int) -> bool:
    """Whether the process that started then is running; a zombie is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _start_ticks(pid) in (None, start_ticks)


def _start_ticks(pid: int) -> int | None:
    """Returns a process's start in ticks since boot; 0 for a zombie, None if unknown."""
    try:
        # The fields after the name, which is in brackets and can contain any character.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if fields[0] in "ZX" else int(fields[19])

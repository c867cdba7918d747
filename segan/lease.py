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
from segan.conditional import Version, conditional_file
from segan.errors import SeganError, StorageError, UsageError

LEASE = "lease.json"
WAKE = signal.SIGUSR2  # from the beating thread to the main one: the lease is lost

_held: ContextVar[frozenset[str]] = ContextVar("held", default=frozenset())


@dataclass(frozen=True)
class Timing:
    """Seconds: between beats, without one until a lease is taken over, between looks at it."""

    beat: float = 10.0
    lease: float = 40.0
    look: float = 1.0


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

    owner: str = ""
    host: str = "a host unknown"
    machine: str = ""
    pid: int = 0
    started: int = 0
    clock: float = 0.0
    cluster: str = ""
    job: str = ""
    since: str = "a time unknown"
    beat: str = ""

    @classmethod
    def of(cls, version: Version) -> Holder:
        """From a lease's file; of one that cannot be read nobody knows whose it is."""
        try:
            found = json.loads(version.content)
            known = {name: found[name] for name in (f.name for f in fields(cls)) if name in found}
            return cls(**{n: type(getattr(cls, n))(value) for n, value in known.items()})
        except (ValueError, TypeError):
            return cls()

    @classmethod
    def here(cls) -> Holder:
        """This process, as the holder of a new lease."""
        return cls(
            owner=uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0,
            cluster=os.environ.get("RAY_ADDRESS", ""),
            job=_job(),
            since=_now(),
        )

    def __str__(self) -> str:
        within = f", Ray job {self.job}" if self.job else ""
        within += f" of the cluster {self.cluster}" if self.cluster else ""
        return f"process {self.pid} on {self.host}{within}"

    @property
    def is_near(self) -> bool:
        """Whether this process can see the holder's."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have ended."""
        return self.is_near and not _runs(self.pid, self.started)

    @property
    def silence(self) -> float | None:
        """Seconds since its last beat; None where its clock is not ours."""
        return time.monotonic() - self.clock if self.is_near else None


@contextlib.contextmanager
def hold(uri: str, timing: Timing | None = None) -> Iterator[None]:
    """Keeps every other driver off a run or a study while the block runs.

    Inside the block it may be asked for again by the same thread, which changes nothing.

    Raises:
        UsageError: another process holds it.
        SeganError: another took it over, because this process gave no sign for too long.
        StorageError: the place cannot be read or written.
    """
    asked = storage.normalise(uri)
    if {asked, study_of(asked)} & _held.get():
        yield
        return
    storage.check_access(asked)
    place = _held_through(asked)
    with _Lease(place, timing or Timing()).taken():
        before = _held.set(_held.get() | {asked, place})
        try:
            yield
        finally:
            _held.reset(before)


def holder(uri: str) -> Holder | None:
    """Who holds the run or study at a URI, unless it is known that they are gone."""
    version = conditional_file(storage.join(storage.normalise(uri), LEASE)).read()
    found = Holder.of(version) if version else None
    return None if found is None or found.is_gone else found


def study_of(run: str) -> str | None:
    """The place of the study that has a run in its trials, by the names alone."""
    above, _, folder = run.rpartition("/")[0].rpartition("/")
    return above if folder == "trials" else None


def _held_through(place: str) -> str:
    study = study_of(place)
    if study and storage.exists(storage.join(study, "study.json")):
        return study
    return place


@dataclass
class _Lease:
    """This process's hold on a place, or its attempt at one."""

    place: str
    timing: Timing
    me: Holder = field(default_factory=Holder.here)
    lost: SeganError | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        uri = storage.join(self.place, LEASE)
        self.makes_folder = not storage.is_s3(uri) and not Path(self.place).exists()
        self.file, self.quick = conditional_file(uri), conditional_file(uri, quick=True)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        try:
            while not self._take():
                pass
            with self._woken_when_lost(), self._beating():
                yield
        except BaseException as error:
            if self.lost and error is not self.lost:
                raise self.lost from error
            raise
        finally:
            if not self.lost:
                self._release()
        if self.lost:
            raise self.lost

    def _take(self) -> bool:
        """Writes the lease, if need be after watching another's; False when somebody was quicker.

        A request that was repeated because its first answer got lost can be told to be too late
        by what it itself wrote: then the lease that the next look finds is ours.
        """
        found = self.file.read()
        if found is None:
            return self.file.replace(None, self._content())
        other = Holder.of(found)
        if other.owner == self.me.owner:
            return True
        if not other.is_gone:
            self._refuse_if_beating(other)
            found = self._watch(found)
        return self.file.replace(found, self._content())

    def _refuse_if_beating(self, other: Holder) -> None:
        if other.silence is not None and other.silence < 2 * self.timing.beat:
            raise self._refusal(other, f"{max(other.silence, 0):.0f} s ago")

    def _watch(self, found: Version) -> Version | None:
        """Returns what is to be replaced when the holder has given no sign for the lease's time."""
        from segan.terminal import say

        other, until = Holder.of(found), time.monotonic() + self.timing.lease
        say(
            f"{self.place}: held by {other} since {other.since}; taken over if no sign of it "
            f"comes in {self.timing.lease:g} s"
        )
        while time.monotonic() < until:
            time.sleep(self.timing.look)
            now = self.file.read()
            if now is None or Holder.of(now).is_gone:
                return now
            if now != found:
                raise self._refusal(Holder.of(now), "just now")
        return found

    def _refusal(self, other: Holder, when: str) -> UsageError:
        stop = f"ray job stop {other.job}" if other.job else "stop that one"
        return UsageError(
            f"{self.place}: held by {other} since {other.since}, last sign {when}; use another "
            f"name, or {stop} first"
        )

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        beating = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        beating.start()
        try:
            yield
        finally:
            self.over.set()
            beating.join()  # a beat is one quick request or two

    def _keep_beating(self) -> None:
        while not self.lost and not self.over.wait(self.timing.beat):
            # A store that does not answer for a while is no reason to stop: others cannot take
            # the lease over by it either.
            with contextlib.suppress(StorageError):
                self._beat()

    def _beat(self) -> None:
        found = self.quick.read()
        other = Holder.of(found) if found else self.me
        if other.owner == self.me.owner:
            # Where somebody else comes in between, the next beat finds them. Where the file is
            # gone it is written again: nobody else has the lease.
            self.quick.replace(found, self._content())
            return
        self.lost = SeganError(
            f"{self.place}: taken over by {other} at {other.since}, because this process had "
            "given no sign for too long; it stops here, and the other goes on"
        )
        if self._wakes:
            signal.pthread_kill(threading.main_thread().ident or 0, WAKE)

    @contextlib.contextmanager
    def _woken_when_lost(self) -> Iterator[None]:
        """The main thread stops when the lease is lost; another one finds out when it is done."""
        self._wakes = threading.current_thread() is threading.main_thread()
        if not self._wakes:
            yield
            return
        before = signal.signal(WAKE, self._stop)
        try:
            yield
        finally:
            signal.signal(WAKE, before)

    def _stop(self, _: int, frame: Any) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt) and interrupt is not signal.default_int_handler:
            interrupt(signal.SIGINT, frame)  # while Ray Train is at work, its own orderly way
        elif self.lost:
            raise self.lost

    def _release(self) -> None:
        # Where the store does not answer, the file stays; it no longer beats, and is taken over.
        with contextlib.suppress(StorageError):
            found = self.quick.read()
            if found and Holder.of(found).owner == self.me.owner:
                self.quick.remove(found)
        if self.makes_folder:
            with contextlib.suppress(OSError):  # a run that never began leaves no empty folder
                Path(self.place).rmdir()

    def _content(self) -> bytes:
        said = asdict(self.me) | {"clock": time.monotonic(), "beat": _now()}
        return (json.dumps(said, indent=2, sort_keys=True) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _job() -> str:
    """The id of the Ray job that this process is the driver of; nothing else of what Ray says."""
    try:
        said = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        return str(said["metadata"]["job_submission_id"])
    except (ValueError, LookupError, TypeError):
        return ""


def _machine() -> str:
    """This boot of this host and the process ids that are valid here: a container has its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _runs(pid: int, started: int) -> bool:
    """Whether this very process is there; a zombie is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(pid) in (None, started)


def _started(pid: int) -> int | None:
    """When a process began, in ticks since boot; 0 of one that has ended, None where unknown."""
    try:
        # The name, in brackets, can hold anything: what follows it begins with the state.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return 0 if words[0] in "ZX" else int(words[19])

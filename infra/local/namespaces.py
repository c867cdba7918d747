"""Network namespaces of this machine on a bridge: hosts that share nothing but a disk.

Linux, root and iproute2. No address of the machine itself is used and nothing of it is reachable
from there, so two of these do not meet either.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.processes import StartError

CLONE_NEWNET = 0x40000000
INTERFACE = "eth0"
PREFIX = "segan"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Namespace:
    """A host of its own, as far as the network goes."""

    name: str
    ip: str

    def disconnect(self) -> None:
        """Off the network, as if a cable were pulled: what is sent to it is lost in silence."""
        _ip(self.name, "link", "set", INTERFACE, "down")

    @contextmanager
    def enter(self) -> Iterator[None]:
        """The calling thread, and every process that it starts, is there while the block runs."""
        with Path("/proc/thread-self/ns/net").open() as before:
            _enter(Path("/run/netns", self.name))
            try:
                yield
            finally:
                _setns(before.fileno())


@contextmanager
def namespaces(names: Sequence[str]) -> Iterator[list[Namespace]]:
    """One for each name, all of them reaching one another; gone afterwards, come what may.

    Raises:
        StartError: this machine, or this user, cannot make them.
    """
    if shutil.which("ip") is None:
        raise StartError("no program 'ip': install iproute2")
    prefix = f"{PREFIX}-{os.getpid()}"
    _delete_stale()
    with ExitStack() as stack:
        switch = _create(f"{prefix}-switch", stack)
        _ip(switch, "link", "add", "bridge", "type", "bridge")
        _ip(switch, "link", "set", "bridge", "up")
        yield [
            _connect(Namespace(_create(f"{prefix}-{name}", stack), f"10.213.0.{number}"), switch)
            for number, name in enumerate(names, 1)
        ]


def _delete_stale() -> None:
    """Deletes those whose maker was killed."""
    for stale in Path("/run/netns").glob(f"{PREFIX}-*-*"):
        if not Path("/proc", stale.name.split("-")[1]).exists():
            _run("ip", "netns", "delete", stale.name)


def _create(name: str, stack: ExitStack) -> str:
    _run("ip", "netns", "add", name)
    stack.callback(_run, "ip", "netns", "delete", name)
    _ip(name, "link", "set", "lo", "up")
    return name


def _connect(namespace: Namespace, switch: str) -> Namespace:
    port = f"to-{namespace.ip.rsplit('.', 1)[-1]}"
    in_namespace = ["netns", namespace.name]
    _ip(switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, *in_namespace)
    _ip(switch, "link", "set", port, "master", "bridge", "up")
    _ip(namespace.name, "address", "add", f"{namespace.ip}/24", "dev", INTERFACE)
    _ip(namespace.name, "link", "set", INTERFACE, "up")
    return namespace


def _ip(namespace: str, *arguments: str) -> None:
    _run("ip", "-netns", namespace, *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise StartError(f"{' '.join(command)}: {done.stderr.strip()}")


def _enter(namespace: Path) -> None:
    with namespace.open() as file:
        _setns(file.fileno())


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

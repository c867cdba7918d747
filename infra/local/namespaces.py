"""Network namespaces on a bridge, which act as hosts that share only a disk.

Needs Linux, root and iproute2. The namespaces cannot reach the machine itself or other networks, so
the addresses of two bridges may be the same.
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
    """A host with a network of its own."""

    name: str
    ip: str

    def disconnect(self) -> None:
        """Disconnects it like a pulled cable: packets to it are lost without an error."""
        _ip(self.name, "link", "set", INTERFACE, "down")

    def reconnect(self) -> None:
        """Undoes `disconnect`; does nothing if it is connected."""
        _ip(self.name, "link", "set", INTERFACE, "up")

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Moves the calling thread, and all processes that it starts, into it during the block."""
        with (
            Path("/proc/thread-self/ns/net").open() as previous,
            Path("/run/netns", self.name).open() as namespace,
        ):
            _setns(namespace.fileno())
            try:
                yield
            finally:
                _setns(previous.fileno())


@contextmanager
def namespaces(names: Sequence[str]) -> Iterator[list[Namespace]]:
    """Creates connected namespaces with these names; deletes them after the block.

    Raises:
        StartError: iproute2 is not installed, or the user may not create namespaces.
    """
    if shutil.which("ip") is None:
        raise StartError("program 'ip' is not installed; install iproute2")
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
    """Deletes the namespaces of processes that were killed."""
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


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

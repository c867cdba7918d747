"""A file system whose power can be cut: ext4 on a loop device and the kernel's own ioctl."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = struct.pack("I", 2)  # nothing that is not on the device yet gets there


class Disk:
    """A file system whose power can be cut.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, image: Path, folder: Path):
        self.image, self.folder = image, folder

    def mount(self) -> None:
        run_or_skip("mount", "-o", "loop", str(self.image), str(self.folder))

    def cut_power(self) -> None:
        """Loses all that is not on the device yet; from now on every access fails."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, FS_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def restart(self) -> None:
        """Mounts it again after a power cut, when no process has files in it open."""
        subprocess.run(["umount", str(self.folder)], check=True)
        self.mount()


def run_or_skip(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip(f"no `{command[0]}` on this machine")
    if done.returncode:
        pytest.skip(f"cannot cut the power of a file system: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """An ext4 file system on a loop device; skipped where it cannot be mounted (needs root)."""
    if os.geteuid():
        pytest.skip("only root can cut the power of a file system")
    disk = Disk(tmp_path / "image", tmp_path / "disk")
    disk.folder.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(64 * 2**20)
    run_or_skip("mkfs.ext4", "-q", str(disk.image))
    disk.mount()
    yield disk
    subprocess.run(["umount", str(disk.folder)], check=True)

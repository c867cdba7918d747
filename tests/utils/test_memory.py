"""The allocator: memory that a step has freed stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FREED_MIB = 128
KEPT_MEMORY = """
import os, sys
from pathlib import Path

import torch
from segan.utils.memory import keep_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

def allocate_and_free():
    return len([torch.ones(4 << 20) for _ in range(8)])  # 8 tensors of 16 MiB

if sys.argv[1] == "keep":
    keep_freed_memory()
before = resident_mib()
for _ in range(5):
    allocate_and_free()
print(resident_mib() - before)
"""


def kept_mib(allocator: str) -> int:
    command = [sys.executable, "-c", KEPT_MEMORY, allocator]
    # glibc's initial threshold, fixed: by default it grows with what is freed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept() -> None:
    assert kept_mib("default") < FREED_MIB / 2
    assert kept_mib("keep") > FREED_MIB * 0.9

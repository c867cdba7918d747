"""The allocator: memory that is freed and allocated again is not cleared by the kernel again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, sys
import torch
from segan.utils.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def allocate_and_free():  # 8 tensors of 16 MiB
    return len([torch.ones(4 << 20) for _ in range(8)])

allocate_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    allocate_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(allocator: str) -> int:
    command = [sys.executable, "-c", PAGE_FAULTS, allocator]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    assert page_faults("keep") < page_faults("default") / 4

"""Settings of the memory allocator."""

from __future__ import annotations

import contextlib
import ctypes

# The options of mallopt(3), and the largest mmap threshold that glibc accepts.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MAX_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next allocation instead of returning it to the kernel.

    A training step on a CPU frees and allocates the same large tensors again and again; each time
    the kernel would clear every page. Does nothing where the C library is another one.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)

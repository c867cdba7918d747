"""Peak rates of the hardware, measured, from which rooflines are derived."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

MIN_RUN_SECONDS = 0.5  # of a measurement


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products and convolutions of `work`, forward and backward.

    A multiplication and its addition count as two.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product or convolution, whichever is faster."""
    side, batch, pixels = (8192, 64, 64) if device.type == "cuda" else (1024, 4, 32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(batch, 256, pixels, pixels, device=device, dtype=dtype)
    kernel = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
    return max(
        2 * side**3 / _min_seconds(lambda: a @ b),
        2 * 9 * 256 * x.numel() / _min_seconds(lambda: F.conv2d(x, kernel, padding=1)),
    )


def measure_copy_bandwidth() -> float:
    """Bytes/s of a copy in the host's memory with all threads of torch."""
    source = torch.ones(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source)
    return source.numel() / _min_seconds(lambda: target.copy_(source))


def _min_seconds(work: Callable[[], object]) -> float:
    """Seconds of the fastest block of runs, after a warm-up."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    with torch.no_grad():
        return float(min(timer.blocked_autorange(min_run_time=MIN_RUN_SECONDS).times))

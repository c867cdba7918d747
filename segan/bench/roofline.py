"""What the hardware could do at best: the rates that a floor is worked out from, measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from segan.bench.measure import get_synchronize

TRIES = 5
MIN_SECONDS = 0.02  # of one try, or the clock and the launch of a kernel show


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of `work`, forward and backward: those of its matrix products and
    convolutions, two for each multiplication with its addition."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The most that a large matrix product or convolution reaches, whichever is faster."""
    side, batch, pixels = (8192, 64, 64) if device.type == "cuda" else (1024, 4, 32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(batch, 256, pixels, pixels, device=device, dtype=dtype)
    kernel = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    x, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (x, kernel))
    return max(
        2 * side**3 / _min_seconds(lambda: a @ b, device),
        2 * 9 * 256 * x.numel() / _min_seconds(lambda: F.conv2d(x, kernel, padding=1), device),
    )


def measure_copy_bandwidth() -> float:
    """Bytes that the host's memory copies in a second with all threads of torch."""
    source = torch.ones(1 << 28, dtype=torch.uint8)
    target = torch.empty_like(source)
    return source.numel() / _min_seconds(lambda: target.copy_(source), source.device)


@torch.no_grad()
def _min_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of a few tries, the work as often as it takes to be timed."""
    wait, times = get_synchronize(device), 1
    while True:
        tries = []
        for _ in range(TRIES):
            wait()
            began = time.perf_counter()
            for _ in range(times):
                work()
            wait()
            tries.append(time.perf_counter() - began)
        if min(tries) >= MIN_SECONDS:
            return min(tries) / times
        times *= 4

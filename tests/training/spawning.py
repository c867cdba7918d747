"""Ranks in processes of their own, and what each of them leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def spawn_ranks(
    as_rank: Callable[..., None], count: int, folder: Path, seconds: float, *more: Any
) -> list[dict[str, Any]]:
    """What `as_rank(rank, folder, *more)` has saved of each rank as rank<n>.pt in the folder."""
    spawned = torch.multiprocessing.spawn(as_rank, (folder, *more), nprocs=count, join=False)
    until = time.monotonic() + seconds
    try:
        while not spawned.join(timeout=1):
            assert time.monotonic() < until, "the ranks wait for each other"
    finally:
        for process in spawned.processes:
            process.kill()
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(count)]

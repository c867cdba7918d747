"""Ranks in processes of their own, and what each of them leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def spawn_ranks(
    target: Callable[..., None], nprocs: int, folder: Path, timeout: float, *args: Any
) -> list[dict[str, Any]]:
    """What `as_rank(rank, folder, *more)` has saved of each rank as rank<n>.pt in the folder."""
    spawned = torch.multiprocessing.spawn(target, (folder, *args), nprocs=nprocs, join=False)
    deadline = time.monotonic() + timeout
    try:
        while not spawned.join(timeout=1):
            assert time.monotonic() < deadline, "the ranks wait for each other"
    finally:
        for process in spawned.processes:
            process.kill()
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(nprocs)]

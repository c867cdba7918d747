"""Ranks in their own processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def spawn_ranks(
    target: Callable[..., None], nprocs: int, folder: Path, timeout: float, *args: Any
) -> list[dict[str, Any]]:
    """Runs `target(rank, folder, *args)` per rank; returns what each saved as rank<n>.pt."""
    spawned = torch.multiprocessing.spawn(target, (folder, *args), nprocs=nprocs, join=False)
    deadline = time.monotonic() + timeout
    try:
        while not spawned.join(timeout=1):
            assert time.monotonic() < deadline, "timeout of the ranks"
    finally:
        for process in spawned.processes:
            process.kill()
    return [torch.load(folder / f"rank{i}.pt", weights_only=True) for i in range(nprocs)]

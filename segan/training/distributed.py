"""The few things that ranks say to each other outside of DDP's gradients."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


@contextlib.contextmanager
def single_process_group() -> Iterator[None]:
    """A process group of this process alone, so that one path serves 1 worker and n."""
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum of a tensor that each rank holds one of, in the same shape."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def average_running_statistics(network: nn.Module) -> None:
    """Makes every rank's batch-norm statistics their mean over the ranks, in place.

    Each rank has seen other images, so before S is evaluated or saved they are brought together.
    """
    if world_size() == 1:
        return
    buffers = [
        buffer
        for module in network.modules()
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
        if buffer is not None
    ]
    if not buffers:
        return
    flat = sum_over_ranks(torch.cat([buffer.flatten() for buffer in buffers])) / world_size()
    offset = 0
    for buffer in buffers:
        buffer.copy_(flat[offset : offset + buffer.numel()].view_as(buffer))
        offset += buffer.numel()


def largest_difference(network: nn.Module) -> float:
    """Greatest absolute difference of any parameter between this rank and rank 0; 0 when equal."""
    with torch.no_grad():
        mine = torch.cat([parameter.flatten() for parameter in network.parameters()])
        first = mine.clone()
        dist.broadcast(first, src=0)
        worst = (mine - first).abs().max()
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)

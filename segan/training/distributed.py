"""The few things that ranks say to each other outside of DDP's gradients."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


class HostCollectives:
    """What the ranks' hosts settle among themselves, apart from what their devices exchange.

    It has a group of its own, on gloo, so that a GPU is never waited for.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._pending: tuple[Tensor, Any] | None = None

    def any_rank_async(self, flag: bool) -> bool:
        """Sends this rank's wish on its way, and says whether any rank had one a call ago.

        Every rank must call it as often, and gets the same word. The answer has had the time
        between two calls to come, so that nobody waits for it.
        """
        previous = self.wait()
        flags = torch.tensor(int(flag))
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = flags, work
        return previous

    def wait(self) -> bool:
        """Takes the word that is still on its way."""
        if self._pending is None:
            return False
        flags, work = self._pending
        work.wait()
        self._pending = None
        return bool(flags.item())

    def all_gather_object(self, obj: Any) -> list[Any]:
        """What each rank has to say, by rank."""
        gathered: list[Any] = [None] * world_size()
        dist.all_gather_object(gathered, obj, group=self._group)
        return gathered


def all_reduce_sum(values: Tensor) -> Tensor:
    """The element-wise sum of a tensor that each rank holds one of, in the same shape."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def batch_norm_stats(network: nn.Module) -> dict[str, Tensor]:
    """The batch norms' running means and variances by name: the buffers themselves."""
    return {
        name: buffer
        for name, buffer in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def flatten(stats: Mapping[str, Tensor]) -> Tensor:
    """All of them in one vector."""
    return torch.cat([buffer.flatten() for buffer in stats.values()])


def unflatten(flat: Tensor, stats: Mapping[str, Tensor]) -> None:
    """Puts what `flatten` gave into buffers of the same shapes, in place."""
    parts = flat.split([buffer.numel() for buffer in stats.values()])
    for buffer, part in zip(stats.values(), parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def all_gather_batch_norm_stats(network: nn.Module) -> Tensor:
    """Every rank's, [ranks, values]."""
    local = flatten(batch_norm_stats(network))
    rows = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(rows, local)
    return torch.stack(rows)


def sync_batch_norm_stats(network: nn.Module) -> None:
    """Makes every rank's batch-norm statistics their mean over the ranks, in place.

    Each rank has seen other images, so before S is evaluated they are brought together.
    """
    stats = batch_norm_stats(network)
    if world_size() > 1 and stats:
        unflatten(all_reduce_sum(flatten(stats)) / world_size(), stats)


def max_replica_divergence(network: nn.Module) -> float:
    """Greatest absolute difference of any parameter between this rank and rank 0; 0 when equal."""
    with torch.no_grad():
        local = torch.cat([parameter.flatten() for parameter in network.parameters()])
        rank0 = local.clone()
        dist.broadcast(rank0, src=0)
        divergence = (local - rank0).abs().max()
        dist.all_reduce(divergence, op=dist.ReduceOp.MAX)
    return float(divergence)

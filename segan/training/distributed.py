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


class Council:
    """What the ranks' hosts settle among themselves, apart from what their devices exchange.

    It has a group of its own, on gloo, so that a GPU is never waited for.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._asked: tuple[Tensor, Any] | None = None

    def any_before(self, wish: bool) -> bool:
        """Sends this rank's wish on its way, and says whether any rank had one a call ago.

        Every rank must call it as often, and gets the same word. The answer has had the time
        between two calls to come, so that nobody waits for it.
        """
        before = self.last_word()
        votes = torch.tensor(int(wish))
        pending = dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._asked = votes, pending
        return before

    def last_word(self) -> bool:
        """Takes the word that is still on its way."""
        if self._asked is None:
            return False
        votes, pending = self._asked
        pending.wait()
        self._asked = None
        return bool(votes.item())

    def gather(self, mine: Any) -> list[Any]:
        """What each rank has to say, by rank."""
        said: list[Any] = [None] * world_size()
        dist.all_gather_object(said, mine, group=self._group)
        return said


def sum_over_ranks(values: Tensor) -> Tensor:
    """The element-wise sum of a tensor that each rank holds one of, in the same shape."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def running_statistics(network: nn.Module) -> dict[str, Tensor]:
    """The batch norms' running means and variances by name: the buffers themselves."""
    return {
        name: buffer
        for name, buffer in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def flatten(statistics: Mapping[str, Tensor]) -> Tensor:
    """All of them in one vector."""
    return torch.cat([buffer.flatten() for buffer in statistics.values()])


def unflatten(flat: Tensor, statistics: Mapping[str, Tensor]) -> None:
    """Puts what `flatten` gave into buffers of the same shapes, in place."""
    parts = flat.split([buffer.numel() for buffer in statistics.values()])
    for buffer, part in zip(statistics.values(), parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def gather_running_statistics(network: nn.Module) -> Tensor:
    """Every rank's, [ranks, values]."""
    mine = flatten(running_statistics(network))
    rows = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(rows, mine)
    return torch.stack(rows)


def average_running_statistics(network: nn.Module) -> None:
    """Makes every rank's batch-norm statistics their mean over the ranks, in place.

    Each rank has seen other images, so before S is evaluated they are brought together.
    """
    statistics = running_statistics(network)
    if world_size() > 1 and statistics:
        unflatten(sum_over_ranks(flatten(statistics)) / world_size(), statistics)


def largest_difference(network: nn.Module) -> float:
    """Greatest absolute difference of any parameter between this rank and rank 0; 0 when equal."""
    with torch.no_grad():
        mine = torch.cat([parameter.flatten() for parameter in network.parameters()])
        first = mine.clone()
        dist.broadcast(first, src=0)
        worst = (mine - first).abs().max()
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return float(worst)

"""Process groups, and the collectives beside DDP's exchange of gradients."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segan.utils.prefetch import prefetch

LOOPBACK_INTERFACE = "lo"
# The interface on which torch's backends connect to each other.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def rank() -> int:
    return dist.get_rank()


def world_size() -> int:
    return dist.get_world_size()


@contextlib.contextmanager
def process_group(store: Path, rank: int, world_size: int) -> Iterator[None]:
    """Initialises a process group whose ranks meet in a file.

    Args:
        store: the file, which must not exist before the first rank comes.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, f"file://{store}", rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def single_process_group() -> Iterator[None]:
    """Initialises a process group of one rank, so that 1 and n workers share one code path."""
    with tempfile.TemporaryDirectory() as folder, process_group(Path(folder, "store"), 0, 1):
        yield


def use_loopback() -> None:
    """Lets the collectives of ranks on one node connect through its loopback interface."""
    if LOOPBACK_INTERFACE in (name for _, name in socket.if_nameindex()):
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, LOOPBACK_INTERFACE)


class HostCollectives:
    """Host-side collectives on gloo groups of their own, which never wait for a GPU."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        # The calls of a thread must not meet those of this one.
        self._flags_group = dist.new_group(backend="gloo")
        self._flags = queue.SimpleQueue[bool | None]()
        self._results = prefetch(map(self._any_rank, iter(self._flags.get, None)), 1)
        self._is_pending = False

    def any_rank_async(self, flag: bool) -> bool:
        """Begins to ask whether any rank has set its flag; returns the previous call's result.

        Every rank must call it equally often, and gets the same result, which had the time between
        two calls to arrive.
        """
        previous = self.wait()
        self._flags.put(flag)
        self._is_pending = True
        return previous

    def wait(self) -> bool:
        """Waits for the result of the pending call; returns it, or False if none is pending."""
        if not self._is_pending:
            return False
        self._is_pending = False
        return next(self._results)

    def _any_rank(self, flag: bool) -> bool:
        """Whether any rank's flag is set, after log2(ranks) messages of each rank.

        In each round the distance doubles at which a rank passes on what it knows (dissemination;
        Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization", 1988). Gloo's own
        all-reduce is a ring of 2 (ranks - 1) messages, one after another.
        """
        known = torch.tensor(int(flag))
        for distance in flag_distances(world_size()):
            received = torch.empty_like(known)
            target, source = (rank() + distance) % world_size(), (rank() - distance) % world_size()
            sending = dist.isend(known, target, group=self._flags_group)
            dist.recv(received, source, group=self._flags_group)
            assert sending is not None, "this rank is in the group"
            sending.wait()
            known = known | received
        return bool(known)

    def close(self) -> None:
        """Ends the thread."""
        self._flags.put(None)

    def all_gather_object(self, obj: Any) -> list[Any]:
        """Returns the object of each rank, by rank."""
        gathered: list[Any] = [None] * world_size()
        dist.all_gather_object(gathered, obj, group=self._group)
        return gathered


def flag_distances(ranks: int) -> list[int]:
    """How far each message of `HostCollectives.any_rank_async` goes, one after another."""
    return [1 << number for number in range((ranks - 1).bit_length())]


def broadcast_object(obj: Any) -> Any:
    """Returns rank 0's object on every rank; the others' are ignored."""
    objects = [obj]
    dist.broadcast_object_list(objects, src=0)
    return objects[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the element-wise sum of a tensor over the ranks."""
    total = values.clone()
    dist.all_reduce(total)
    return total


def batch_norm_stats(network: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers of the batch norms' running means and variances, by name."""
    return {
        name: buffer
        for name, buffer in network.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def flatten(stats: Mapping[str, Tensor]) -> Tensor:
    """Concatenates buffers to one vector."""
    parts = [buffer.flatten() for buffer in stats.values()]
    return torch.cat(parts) if parts else torch.empty(0)


def unflatten(flat: Tensor, stats: Mapping[str, Tensor]) -> None:
    """Copies the result of `flatten` into buffers of the same shapes."""
    parts = flat.split([buffer.numel() for buffer in stats.values()])
    for buffer, part in zip(stats.values(), parts, strict=True):
        buffer.copy_(part.view_as(buffer))


def all_gather_batch_norm_stats(network: nn.Module) -> Tensor:
    """Returns the batch-norm statistics of every rank, [ranks, values]."""
    local = flatten(batch_norm_stats(network))
    rows = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(rows, local)
    return torch.stack(rows)


def sync_batch_norm_stats(network: nn.Module) -> None:
    """Replaces the batch-norm statistics by their mean over the ranks, before an evaluation."""
    stats = batch_norm_stats(network)
    if world_size() > 1 and stats:
        unflatten(all_reduce_sum(flatten(stats)) / world_size(), stats)


@torch.no_grad()
def max_replica_divergence(network: nn.Module) -> float:
    """Returns the largest absolute difference of a parameter between any rank and rank 0.

    Compares one parameter after another, which takes little memory.
    """
    if world_size() == 1:
        return 0.0
    divergence = torch.zeros((), device=next(network.parameters()).device)
    for parameter in network.parameters():
        rank0 = parameter.clone(memory_format=torch.contiguous_format)
        dist.broadcast(rank0, src=0)
        divergence = torch.maximum(divergence, rank0.sub_(parameter).abs_().max().float())
    dist.all_reduce(divergence, op=dist.ReduceOp.MAX)
    return float(divergence)

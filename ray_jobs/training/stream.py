"""The training data of a run: shards that Ray Data reads, and of which each rank takes its rows.

    Ray Data --shards, in the order of need--> feed of a node --references--> rank 0, 1, ...

Ray Data does not order samples as a training needs it, and its overhead is per block. So its
blocks are whole shards, and each rank makes its batches from the shards of its lanes
(`segan.data.stream`), which it maps from the object store of its node.

If the records fit Ray's object store, each shard is read once and kept. If not, a shard is read for
each visit, and one execution on each node reads for the ranks of that node, a few shards ahead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.train import DataConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.training.datasource import bytes_per_row
from ray_jobs.training.feed import KeptShards, ShardFeed, StreamedShards
from segan.data.stream.batches import Batch, StreamSpec, read_batches
from segan.data.stream.lanes import Visit

OBJECT_STORE_FRACTION = 0.3  # of the cluster's object store that kept records may fill
MAPPED_SHARDS = 8  # of the kept ones, that a rank has mapped from the object store
MAX_WAITING_RANKS = 64  # of a feed of kept shards; more of them wait for each other


@dataclass(frozen=True)
class RankStream:
    """Where a rank gets its shards.

    Attributes:
        feed: the handle of its actor.
        keeps: whether the feed keeps the shards.
    """

    feed: Any
    rank: int
    keeps: bool

    def read_batches(self, spec: StreamSpec) -> Iterator[Batch]:
        """The rank's batches in order."""
        if not self.keeps:
            return read_batches(spec, self.rank, lambda part: self._get(part.visit))
        # By name: the visits of a shard have the same table.
        get = functools.lru_cache(MAPPED_SHARDS)(lambda name: self._get(Visit(0, 0, name)))
        return read_batches(spec, self.rank, lambda part: get(part.shard.name))

    def _get(self, visit: Visit) -> pa.Table:
        """The shard of a visit, mapped from the object store of this node."""
        (ref,) = ray.get(self.feed.get.remote(self.rank, visit))
        return ray.get(ref)


class StreamDataConfig(DataConfig):
    """Gives each worker of a Ray Train run its part of the stream.

    Ray Train calls it at each start of the worker group, so a group that is restarted after a fault
    gets a stream that begins at the latest checkpoint.
    """

    def configure(
        self,
        datasets: dict[str, StreamSpec],
        world_size: int,
        worker_handles: list[Any] | None = None,
        worker_node_ids: list[str] | None = None,
        **_: Any,
    ) -> list[dict[str, RankStream]]:
        ((name, spec),) = datasets.items()
        streams = open_stream(spec.with_world_size(world_size), worker_node_ids)
        return [{name: stream} for stream in streams]


def open_stream(spec: StreamSpec, node_ids: list[str] | None = None) -> list[RankStream]:
    """The stream of each rank.

    Args:
        node_ids: of the ranks' nodes; None if all of them are on this one.
    """
    nodes = node_ids or [ray.get_runtime_context().get_node_id()] * spec.world_size
    if fits_object_store(spec):
        feed = _start_feed(KeptShards, spec, range(spec.world_size), nodes[0])
        return [RankStream(feed, rank, keeps=True) for rank in range(spec.world_size)]
    feeds = {
        node: _start_feed(
            StreamedShards, spec, [rank for rank, other in enumerate(nodes) if other == node], node
        )
        for node in set(nodes)
    }
    return [RankStream(feeds[node], rank, keeps=False) for rank, node in enumerate(nodes)]


def fits_object_store(spec: StreamSpec) -> bool:
    """Whether the object store of the cluster has room for all records."""
    records_bytes = spec.sampler.num_rows * bytes_per_row(spec.sampler.manifest)
    object_store_bytes = ray.cluster_resources().get("object_store_memory", 0)
    return bool(records_bytes <= OBJECT_STORE_FRACTION * object_store_bytes)


def _start_feed(kind: type[ShardFeed], spec: StreamSpec, ranks: Sequence[int], node_id: str) -> Any:
    # A rank of a feed that streams must not wait for the call of another one.
    threads = len(ranks) if kind is StreamedShards else min(len(ranks), MAX_WAITING_RANKS)
    options = {
        "num_cpus": 0,
        "max_concurrency": threads + 1,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=True),
    }
    return ray.remote(kind).options(**options).remote(spec, tuple(ranks))

"""Actors that read shards with Ray Data and give references to them to ranks."""

from __future__ import annotations

import abc
import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ray.data import ExecutionResources

from ray_jobs.cluster.ray_internals import EXECUTION_CALLBACK
from ray_jobs.training.datasource import bytes_per_row, shard_dataset
from segan.data.records.format import Shard
from segan.data.stream.batches import SHARDS_AHEAD, StreamSpec, shard_visits, visit_ranks
from segan.data.stream.lanes import ShardSlice, Visit
from segan.utils.prefetch import prefetch

SHARDS_PER_EXECUTION = 1000  # Ray Data creates all read tasks of an execution at its start
READ_TASKS_PER_RANK = 2  # at the same time
SCHEDULING_LOOP_SLEEP_S = 0.01


class ThrottleSchedulingLoop(EXECUTION_CALLBACK.load()):  # type: ignore[misc]
    """Sleeps between iterations of Ray Data's scheduling loop.

    The loop busy-waits while its output is full, as it nearly always is during a training, and
    takes half a core from a training on the same machine.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(SCHEDULING_LOOP_SLEEP_S)


class ShardFeed(abc.ABC):
    """Reads the shards of some ranks in a thread, in the order in which they need them."""

    def __init__(self, spec: StreamSpec, ranks: tuple[int, ...]):
        self.spec, self.ranks = spec, ranks
        self.changed = threading.Condition()
        self.refs: dict[Any, Any] = {}
        self._error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def num_held(self) -> int:
        """Shards that are read and can still be taken."""
        with self.changed:
            return len(self.refs)

    @abc.abstractmethod
    def read(self) -> None:
        """Fills `refs` and notifies `changed`."""

    def wait_for(self, key: Any) -> Any:
        """A reference, once it is read; raises the error of the thread. Needs `changed`."""
        self.changed.wait_for(lambda: key in self.refs or self._error is not None)
        if key not in self.refs:
            assert self._error is not None
            raise self._error
        return self.refs[key]

    def _run(self) -> None:
        try:
            self.read()
        except BaseException as error:  # raised by `wait_for`
            with self.changed:
                self._error = error
                self.changed.notify_all()


class KeptShards(ShardFeed):
    """Reads each shard once and keeps it in the object store."""

    def get(self, rank: int, visit: Visit) -> list[Any]:
        """A reference to the shard of a visit, in a list so that Ray does not wait for its value.

        Waits until it is read.
        """
        with self.changed:
            return [self.wait_for(visit.shard_name)]

    def read(self) -> None:
        needed: dict[str, Shard] = {}
        for _, part in shard_visits(self.spec, self.ranks):
            needed[part.shard.name] = part.shard
            if len(needed) == len(self.spec.sampler.manifest.shards(self.spec.sampler.split)):
                break
        for shard, ref in _execute(self.spec, [*needed.values()]):
            with self.changed:
                self.refs[shard.name] = ref
                self.changed.notify_all()


class StreamedShards(ShardFeed):
    """Reads a shard for each visit, a few shards ahead of the ranks, and then forgets it.

    A visit is read once for all ranks that share its lane.
    """

    def __init__(
        self,
        spec: StreamSpec,
        ranks: tuple[int, ...],
        shards_per_execution: int = SHARDS_PER_EXECUTION,
    ):
        self._shards_per_execution = shards_per_execution
        self._untaken: set[Visit] = set()  # by any rank
        self._ranks_left: dict[Visit, set[int]] = {}  # that have yet to take the visit
        super().__init__(spec, ranks)

    def get(self, rank: int, visit: Visit) -> list[Any]:
        """As `KeptShards.get`; a rank takes each of its visits once."""
        with self.changed:
            ref = self.wait_for(visit)
            self._untaken.discard(visit)
            self._ranks_left[visit].discard(rank)
            if not self._ranks_left[visit]:
                del self.refs[visit], self._ranks_left[visit]
            self.changed.notify_all()
            return [ref]

    def read(self) -> None:
        visits, plan = shard_visits(self.spec, self.ranks), self.spec.plan
        chunks = iter(lambda: [*itertools.islice(visits, self._shards_per_execution)], [])
        # The next execution starts while the ranks take the shards of the one before it.
        for read in prefetch(map(self._execute, chunks), 1):
            for (position, part), ref in read:
                ranks = visit_ranks(self.spec, plan, position, part.visit)
                self._add(part.visit, ranks, ref)

    def _execute(
        self, visits: list[tuple[int, ShardSlice]]
    ) -> Iterator[tuple[tuple[int, ShardSlice], Any]]:
        lanes = self.spec.lanes // math.gcd(self.spec.lanes, self.spec.world_size)
        # Of each rank: a shard of each lane, and those that it loads ahead. Before them, shards
        # that nobody has taken yet, and those that are being read.
        shards = len(self.ranks) * (lanes + 2 * SHARDS_AHEAD + 1 + READ_TASKS_PER_RANK)
        read = _execute(
            self.spec,
            [part.shard for _, part in visits],
            max(2, READ_TASKS_PER_RANK * len(self.ranks)),
            shards * max(part.shard.num_rows for _, part in visits),
        )
        return zip(visits, (ref for _, ref in read), strict=True)

    def _add(self, visit: Visit, ranks: set[int], ref: Any) -> None:
        with self.changed:
            # Whatever a rank waits for comes after visits that others take before that.
            limit = SHARDS_AHEAD * len(self.ranks)
            self.changed.wait_for(lambda: len(self._untaken) <= limit)
            self._untaken.add(visit)
            self._ranks_left[visit] = ranks.intersection(self.ranks)
            self.refs[visit] = ref
            self.changed.notify_all()


def _execute(
    spec: StreamSpec,
    shards: Sequence[Shard],
    concurrency: int | None = None,
    max_rows: float = math.inf,
) -> Iterator[tuple[Shard, Any]]:
    """Starts to read shards; returns an iterator over them and the references to their tables.

    Args:
        concurrency: read tasks at the same time; None for as many as there are CPUs.
        max_rows: in the object store, as long as they are referenced.
    """
    manifest = spec.sampler.manifest
    dataset = shard_dataset(spec.records, shards, manifest, concurrency)
    options = dataset.context.execution_options
    options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=max_rows * bytes_per_row(manifest)
    )
    dataset.context.custom_execution_callback_classes.append(ThrottleSchedulingLoop)
    bundles = dataset.iter_internal_ref_bundles()
    refs = (block.ref for bundle in bundles for block in bundle.blocks)
    return zip(shards, refs, strict=True)

"""The stream, taken by ranks that do nothing else, beside two others of the same images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.data import DataIterator

from ray_jobs.stream import StreamConfig, batches, row_bytes
from segan.bench.floor import copied_bytes_per_second
from segan.bench.frames import loader, write_files
from segan.bench.measure import Report, Way
from segan.data.batches import Plan

LOADER_WORKERS = 2


@dataclass(frozen=True)
class Taken:
    """What one rank took.

    Attributes:
        first, last: when its first batch was there and when its last was, seconds.
        images: after the first batch.
        memory: bytes of the rank's own, shared memory left out.
    """

    first: float
    last: float
    images: int
    memory: int


class Rank:
    """An actor that takes batches and leaves them."""

    def take(self, open_batches: Callable[[], Iterator[int]]) -> Taken:
        """Goes through all; each item is how many images a batch had."""
        source = open_batches()
        next(source)
        first, images = time.time(), 0
        for size in source:
            images += size
        return Taken(first, time.time(), images, _own_memory())


def bench_stream(
    plan: Plan,
    repeats: int,
    rivals: bool = True,
    tell: Callable[[str], object] = lambda line: None,
) -> Report:
    """Times the stream through all epochs of a plan, from the first batch on.

    Beside it, unless `rivals` is false, torch's DataLoader over the same images as files, and a
    Ray Data execution for each epoch. The floor is each image's bytes copied once, over the rate
    at which the host copies memory.
    """
    manifest = plan.sequence.manifest
    ways: dict[str, Callable[[], tuple[float, list[Taken]]]] = {"stream": partial(_stream, plan)}
    taken: dict[str, list[tuple[float, list[Taken]]]] = {}
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        if rivals:
            write_files(plan.records, manifest, plan.sequence.split, Path(folder))
            ways["torch DataLoader"] = partial(_files, plan, folder)
            ways["an execution an epoch"] = partial(_by_epoch, plan)
        for turn in range(repeats):
            for name, work in ways.items():
                taken.setdefault(name, []).append(work())
            tell(f"repeat {turn + 1} of {repeats}")
    rate = copied_bytes_per_second()
    size = row_bytes(manifest)
    return Report(
        f"{plan.epochs} epochs of {plan.sequence.rows} images to {plan.workers} ranks, "
        f"batches of {plan.batch_size}",
        f"{size} bytes an image, copied once at {rate / 1e9:.3g} GB/s",
        tuple(_way(name, found, size / rate) for name, found in taken.items()),
    )


def _way(name: str, found: list[tuple[float, list[Taken]]], floor: float) -> Way:
    images = sum(rank.images for rank in found[0][1])
    seconds = [max(r.last for r in ranks) - min(r.first for r in ranks) for _, ranks in found]
    starts = sorted(min(r.first for r in ranks) - began for began, ranks in found)
    memory = max(rank.memory for _, ranks in found for rank in ranks)
    notes = {"first batch, s": starts[len(starts) // 2], "rank, MB": memory / 1e6}
    return Way(name, images, tuple(seconds), floor * images, notes)


def _take(sources: Sequence[Callable[[], Iterator[int]]]) -> tuple[float, list[Taken]]:
    """When it began, and what each rank took; ranks are there before the clock runs."""
    actor = ray.remote(num_cpus=0)(Rank)
    ranks = [actor.remote() for _ in sources]
    ray.get([rank.__ray_ready__.remote() for rank in ranks])
    began = time.time()
    found = ray.get([r.take.remote(source) for r, source in zip(ranks, sources, strict=True)])
    for rank in ranks:
        ray.kill(rank)
    return began, found


def _stream(plan: Plan) -> tuple[float, list[Taken]]:
    began = time.time()
    splits = StreamConfig().configure({"train": plan}, plan.workers)
    sources = [partial(_of_stream, split["train"], plan) for split in splits]
    _, found = _take(sources)
    return began, found


def _of_stream(shard: DataIterator, plan: Plan) -> Iterator[int]:
    return (len(batch.ids) for batch in batches(shard, plan))


def _files(plan: Plan, folder: str) -> tuple[float, list[Taken]]:
    return _take([partial(_of_files, folder, plan.batch_size, plan.epochs)])


def _of_files(folder: str, batch_size: int, epochs: int) -> Iterator[int]:
    source = loader(folder, batch_size, LOADER_WORKERS)
    return (len(image) for _ in range(epochs) for image, _ in source)


def _by_epoch(plan: Plan) -> tuple[float, list[Taken]]:
    began = time.time()
    shards = plan.sequence.manifest.shards(plan.sequence.split)
    data: Any = ray.data.read_parquet([f"{plan.records}/{shard.name}" for shard in shards])
    splits = data.streaming_split(plan.workers, equal=True)
    _, found = _take([partial(_of_epochs, split, plan.batch_size, plan.epochs) for split in splits])
    return began, found


def _of_epochs(split: DataIterator, batch_size: int, epochs: int) -> Iterator[int]:
    for _ in range(epochs):
        for table in split.iter_batches(
            batch_size=batch_size, batch_format="pyarrow", prefetch_batches=4, drop_last=True
        ):
            yield table.num_rows


def _own_memory() -> int:
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

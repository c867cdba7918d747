"""Benchmark of the training stream: ranks that only consume batches, against two baselines."""

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

from ray_jobs.training.datasource import bytes_per_row
from ray_jobs.training.stream import RankStream, open_stream
from segan.bench.frames import make_loader, write_image_files
from segan.bench.measure import BenchReport, Timing
from segan.bench.roofline import measure_copy_bandwidth
from segan.data.stream.batches import StreamSpec
from segan.utils.memory import keep_freed_memory

LOADER_WORKERS = 2


@dataclass(frozen=True)
class RankTimes:
    """What one rank measured.

    Attributes:
        first_batch_at, last_batch_at: time.time() when these batches arrived.
        images: received after the first batch.
        memory_bytes: of the rank's process, without shared memory.
    """

    first_batch_at: float
    last_batch_at: float
    images: int
    memory_bytes: int


Repeat = tuple[float, list[RankTimes]]  # when it began, and what each rank measured
BatchSizes = Callable[[], Iterator[int]]  # opens an iterator over the batches' numbers of images


class BatchConsumer:
    """The class of the actors that consume batches."""

    def consume(self, open_batches: BatchSizes) -> RankTimes:
        keep_freed_memory()  # as a training does
        batch_sizes = open_batches()
        next(batch_sizes)
        first, images = time.time(), 0
        for size in batch_sizes:
            images += size
        return RankTimes(first, time.time(), images, _anonymous_memory_bytes())


def bench_stream(
    spec: StreamSpec,
    repeats: int,
    baselines: bool = True,
    on_progress: Callable[[str], object] = lambda message: None,
) -> BenchReport:
    """Times all epochs of a stream from the first batch on.

    The baselines are torch's DataLoader over the same images as files, and one Ray Data execution
    per epoch. The roofline is one copy of each image's bytes at the host's copy bandwidth.
    """
    manifest = spec.sampler.manifest
    variants: dict[str, Callable[[], Repeat]] = {"stream": partial(_time_stream, spec)}
    timings: dict[str, list[Repeat]] = {}
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        if baselines:
            write_image_files(spec.records, manifest, spec.sampler.split, Path(folder))
            variants["torch DataLoader"] = partial(_time_data_loader, spec, folder)
            variants["execution per epoch"] = partial(_time_execution_per_epoch, spec)
        for repeat in range(repeats):
            for name, work in variants.items():
                timings.setdefault(name, []).append(work())
            on_progress(f"repeat {repeat + 1} of {repeats}")
    copy_rate = measure_copy_bandwidth()
    size = bytes_per_row(manifest)
    return BenchReport(
        f"{spec.epochs} epochs of {spec.sampler.num_rows} images to {spec.world_size} ranks, "
        f"batches of {spec.batch_size}",
        f"{size} bytes per image, copied once at {copy_rate / 1e9:.3g} GB/s",
        tuple(_to_timing(name, times, size / copy_rate) for name, times in timings.items()),
    )


def _to_timing(name: str, repeats: list[Repeat], roofline: float) -> Timing:
    images = sum(rank.images for rank in repeats[0][1])
    seconds = [
        max(r.last_batch_at for r in ranks) - min(r.first_batch_at for r in ranks)
        for _, ranks in repeats
    ]
    starts = sorted(min(r.first_batch_at for r in ranks) - began for began, ranks in repeats)
    memory = max(rank.memory_bytes for _, ranks in repeats for rank in ranks)
    notes = {"first_batch_s": starts[len(starts) // 2], "rank_memory_mb": memory / 1e6}
    return Timing(name, images, tuple(seconds), roofline * images, notes)


def _time_consumers(began: float | None, sources: Sequence[BatchSizes]) -> Repeat:
    """Runs a consumer per source; if `began` is None, the time starts when all actors are ready."""
    actor = ray.remote(num_cpus=0)(BatchConsumer)
    ranks = [actor.remote() for _ in sources]
    ray.get([rank.__ray_ready__.remote() for rank in ranks])
    began = time.time() if began is None else began
    times = ray.get([r.consume.remote(source) for r, source in zip(ranks, sources, strict=True)])
    for rank in ranks:
        ray.kill(rank)
    return began, times


def _time_stream(spec: StreamSpec) -> Repeat:
    began = time.time()
    sources = [partial(_stream_batch_sizes, stream, spec) for stream in open_stream(spec)]
    return _time_consumers(began, sources)


def _stream_batch_sizes(stream: RankStream, spec: StreamSpec) -> Iterator[int]:
    return (len(batch.ids) for batch in stream.read_batches(spec))


def _time_data_loader(spec: StreamSpec, folder: str) -> Repeat:
    source = partial(_loader_batch_sizes, folder, spec.batch_size, spec.epochs)
    return _time_consumers(None, [source])


def _loader_batch_sizes(folder: str, batch_size: int, epochs: int) -> Iterator[int]:
    source = make_loader(folder, batch_size, LOADER_WORKERS)
    return (len(image) for _ in range(epochs) for image, _ in source)


def _time_execution_per_epoch(spec: StreamSpec) -> Repeat:
    began = time.time()
    shards = spec.sampler.manifest.shards(spec.sampler.split)
    data: Any = ray.data.read_parquet([f"{spec.records}/{shard.name}" for shard in shards])
    splits = data.streaming_split(spec.world_size, equal=True)
    return _time_consumers(
        began,
        [partial(_epoch_batch_sizes, split, spec.batch_size, spec.epochs) for split in splits],
    )


def _epoch_batch_sizes(split: DataIterator, batch_size: int, epochs: int) -> Iterator[int]:
    for _ in range(epochs):
        for table in split.iter_batches(
            batch_size=batch_size, batch_format="pyarrow", prefetch_batches=4, drop_last=True
        ):
            yield table.num_rows


def _anonymous_memory_bytes() -> int:
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024

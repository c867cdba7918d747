"""How the cost of a run's data grows with images and workers, simulated in this process.

Plans, reads and counts an epoch of made-up records with frames of one pixel: without Ray, a GPU or
storage, so that it needs minutes for ten million images. Of each quantity it gives the exponent:
the slope of its logarithm over that of the number of images, or of workers.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from segan.bench.measure import describe_machine
from segan.data.ingest import ROWS_PER_SHARD, count_shards
from segan.data.records.format import Manifest, Shard, make_manifest, shard_prefix
from segan.data.records.frames import FrameShare
from segan.data.stream.batches import StreamSpec, read_batches, shard_visits
from segan.data.stream.lanes import ShardSlice, Visit
from segan.data.stream.sampler import DeterministicSampler
from segan.training.distributed import flag_distances

BATCH_SIZE = 25
VALIDATION_FRACTION = 10  # training images for each validation image
MIB = 1 << 20


@dataclass(frozen=True)
class ScalePoint:
    """The costs at one size.

    Attributes:
        manifest_bytes: of manifest.json; every start reads it.
        parse_s: to parse it.
        spec_bytes: what the driver sends to each worker.
        plan_s, plan_mib: to find the shards of all batches of an epoch; the second is the peak.
        requests: shards read in an epoch by all workers, if none is kept.
        rows_read: rows in these shards, for each row of an epoch.
        read_us: to make a row of one worker's batches out of shards.
        shards_in_memory: the most that a worker holds at once, with those that it loads ahead.
        validation_requests: shards read in a validation by all workers.
        flag_messages: of a worker in a step, one after another, to agree whether to stop.
    """

    images: int
    workers: int
    manifest_bytes: int
    parse_s: float
    spec_bytes: int
    plan_s: float
    plan_mib: float
    requests: int
    rows_read: float
    read_us: float
    shards_in_memory: int
    validation_requests: int
    flag_messages: int


@dataclass(frozen=True)
class ScaleReport:
    """The points, and the exponents of their quantities by name."""

    by_images: tuple[ScalePoint, ...]
    by_workers: tuple[ScalePoint, ...]
    exponents_in_images: dict[str, float]
    exponents_in_workers: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable values, with the machine."""
        return {**dataclasses.asdict(self), "machine": describe_machine()}


def bench_scale(
    images: Sequence[int],
    workers: Sequence[int],
    on_progress: Callable[[str], object] = lambda message: None,
) -> ScaleReport:
    """Measures all numbers of images with the middle number of workers, and the reverse.

    Args:
        images, workers: at least two of each, in ascending order.
    """
    middle_images, middle_workers = images[len(images) // 2], workers[len(workers) // 2]
    points: dict[tuple[int, int], ScalePoint] = {}
    for size in [*((n, middle_workers) for n in images), *((middle_images, w) for w in workers)]:
        if size not in points:
            points[size] = measure_point(*size)
            on_progress(f"{size[0]} images, {size[1]} workers")
    by_images = tuple(points[n, middle_workers] for n in images)
    by_workers = tuple(points[middle_images, w] for w in workers)
    return ScaleReport(
        by_images, by_workers, _exponents(by_images, "images"), _exponents(by_workers, "workers")
    )


def measure_point(images: int, workers: int) -> ScalePoint:
    """Simulates an epoch of so many images with so many workers."""
    content = make_records(images).model_dump_json()
    started_at = time.process_time()
    manifest = Manifest.model_validate_json(content)
    parse_s = time.process_time() - started_at
    sampler = DeterministicSampler(manifest, "train", 0)
    spec = StreamSpec("records", sampler, 1, 0, BATCH_SIZE, workers, workers)
    shares = [
        FrameShare("records", manifest, "validation", rank, workers) for rank in range(workers)
    ]
    return ScalePoint(
        images=images,
        workers=workers,
        manifest_bytes=len(content),
        parse_s=parse_s,
        spec_bytes=len(pickle.dumps(spec)),
        **_plan_epoch(spec),
        **_read_epoch(spec),
        validation_requests=sum(len(share.shards) for share in shares),
        flag_messages=len(flag_distances(workers)),
    )


def make_records(images: int) -> Manifest:
    """A manifest of so many training images, and of fewer validation images."""
    splits = {"train": images, "validation": -(-images // VALIDATION_FRACTION)}
    shards = {
        split: [
            _make_shard(split, index, count_shards(rows, ROWS_PER_SHARD), rows)
            for index in range(count_shards(rows, ROWS_PER_SHARD))
        ]
        for split, rows in splits.items()
    }
    return make_manifest((1, 1, 1), shards, [], "simulated")


def make_table(shard: Shard) -> tuple[pa.Table, np.ndarray]:
    """The content of a shard of `make_records`, and the memory of its images."""
    rows = shard.num_rows
    pixels = np.zeros(3 * rows, np.uint8)
    images = [None, pa.py_buffer(pixels)]
    table = pa.table(
        {
            "id": [f"{shard.name}/{row:06d}" for row in range(rows)],
            "image": pa.FixedSizeBinaryArray.from_buffers(pa.binary(3), rows, images),
            "mask": pa.array([b"1"] * rows, pa.binary(1)),
        }
    )
    return table, pixels


def _make_shard(split: str, index: int, count: int, rows: int) -> Shard:
    digest = f"{index:064x}"
    return Shard(
        name=f"{shard_prefix(split, index, count)}-{digest[-16:]}.parquet",
        num_rows=rows * (index + 1) // count - rows * index // count,
        bytes=rows * 73_158 // count,
        sha256=digest,
        content_digest=digest,
    )


def _plan_epoch(spec: StreamSpec) -> dict[str, Any]:
    """The fields of a ScalePoint about the visits of all ranks."""
    requests = rows = 0
    tracemalloc.start()
    started_at = time.process_time()
    for _, part in shard_visits(spec, range(spec.world_size)):
        requests, rows = requests + 1, rows + part.shard.num_rows
    seconds, peak = time.process_time() - started_at, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "plan_s": seconds,
        "plan_mib": peak / MIB,
        "requests": requests,
        "rows_read": rows / spec.sampler.num_rows,
    }


def _read_epoch(spec: StreamSpec) -> dict[str, Any]:
    """The fields of a ScalePoint about rank 0's batches."""
    made_s, rows, max_shards = 0.0, 0, 0
    in_memory: set[tuple[Visit, int]] = set()

    def load(part: ShardSlice) -> pa.Table:
        nonlocal made_s, max_shards
        started_at = time.thread_time()
        table, pixels = make_table(part.shard)
        key = part.visit, id(pixels)
        in_memory.add(key)
        max_shards = max(max_shards, len(in_memory))
        weakref.finalize(pixels, in_memory.discard, key)
        made_s += time.thread_time() - started_at
        return table

    started_at = time.process_time()
    for batch in read_batches(spec, 0, load):
        rows += len(batch.ids)
    seconds = time.process_time() - started_at - made_s
    return {"read_us": 1e6 * seconds / rows, "shards_in_memory": max_shards}


def _exponents(points: Sequence[ScalePoint], size: str) -> dict[str, float]:
    """The slope of each quantity, by least squares over the logarithms."""
    sizes = np.log([getattr(point, size) for point in points])
    names = [f.name for f in dataclasses.fields(ScalePoint)[2:]]
    values = {name: [max(getattr(p, name), 1e-9) for p in points] for name in names}
    return {name: float(np.polyfit(sizes, np.log(values[name]), 1)[0]) for name in names}

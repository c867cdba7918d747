"""What the stream costs: images/s and CPU time per image of all Ray's processes, in steady state.

    python -m tests.stream_costs --ranks 2 8 32             # shards that Ray's object store keeps
    python -m tests.stream_costs --ranks 2 8 32 --streamed  # shards that are read for each visit

Ranks are threads of two processes, which only receive batches. Prints a line of JSON per number of
ranks. Starts a Ray of its own for each; without other load.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
import time
from typing import Any

import psutil
import ray

from ray_jobs.training import stream
from segan.bench.frames import write_records
from segan.data.stream.batches import StreamSpec
from segan.data.stream.sampler import DeterministicSampler
from segan.utils.memory import keep_freed_memory

NUM_CPUS, OBJECT_STORE_BYTES = 4, 4_000_000_000
PROCESSES = 2
SETTLE_S = 3.0  # after the first batches: shards that are kept are then read


@ray.remote(num_cpus=0, max_concurrency=2)
class Ranks:
    """Some ranks, each in a thread."""

    def __init__(self, streams: list[stream.RankStream], spec: StreamSpec):
        keep_freed_memory()
        self.spec, self.counts = spec, [0] * len(streams)
        self.has_first = threading.Barrier(len(streams) + 1)
        self.may_go_on = threading.Event()
        self.threads = [
            threading.Thread(target=self.consume, args=item) for item in enumerate(streams)
        ]
        for thread in self.threads:
            thread.start()

    def consume(self, number: int, source: stream.RankStream) -> None:
        batches = source.read_batches(self.spec)
        next(batches)
        self.has_first.wait()
        self.may_go_on.wait()
        for batch in batches:
            self.counts[number] += len(batch.ids)

    def wait_for_first(self) -> None:
        self.has_first.wait()

    def consume_rest(self) -> int:
        """Returns the number of images after the first batches."""
        self.may_go_on.set()
        for thread in self.threads:
            thread.join()
        return sum(self.counts)


def measure(spec: StreamSpec) -> dict[str, Any]:
    began, streams = time.monotonic(), stream.open_stream(spec)
    parts = [part for part in (streams[i::PROCESSES] for i in range(PROCESSES)) if part]
    actors = [Ranks.remote(part, spec) for part in parts]
    ray.get([actor.wait_for_first.remote() for actor in actors])
    first_batch_s = time.monotonic() - began
    time.sleep(SETTLE_S)
    cpu, began = cpu_seconds(), time.monotonic()
    images = sum(ray.get([actor.consume_rest.remote() for actor in actors]))
    seconds = time.monotonic() - began
    return {
        "ranks": spec.world_size,
        "images": images,
        "images_per_second": round(images / seconds),
        "cpu_us_per_image": round(1e6 * (cpu_seconds() - cpu) / images, 1),
        "first_batch_s": round(first_batch_s, 1),
        "load": os.getloadavg()[0],
    }


def cpu_seconds() -> float:
    """Of all processes that this one has started, without those that have ended."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--streamed", action="store_true")
    options = parser.parse_args()
    if options.streamed:
        stream.OBJECT_STORE_FRACTION = 0.0
    with tempfile.TemporaryDirectory(prefix="segan-stream-") as folder:
        sampler = DeterministicSampler(write_records(folder, options.pairs), "train", 0)
        for ranks in options.ranks:
            ray.init(
                num_cpus=NUM_CPUS,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _temp_dir=f"{folder}/ray",
                logging_level="error",
            )
            spec = StreamSpec(folder, sampler, options.epochs, 0, options.batch_size, ranks, ranks)
            print(json.dumps(measure(spec) | {"streamed": options.streamed}), flush=True)
            ray.shutdown()


if __name__ == "__main__":
    main()

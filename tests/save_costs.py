"""What metrics and checkpoints cost: requests, bytes, seconds and memory, on a real S3 server.

    python -m tests.save_costs flush                   # after 100, 10,000 and 1,000,000 steps
    python -m tests.save_costs epoch                   # requests of an epoch
    python -m tests.save_costs checkpoint --width 64   # save, list, verify, load
    python -m tests.save_costs slow --width 16         # steps beside an upload of 5 MB/s

Prints one line of JSON per measurement. Without other load, one measurement at a time.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch

from infra.local.s3 import s3_server
from segan import storage
from segan.bench.frames import write_records
from segan.config import Config
from segan.errors import StoppedError
from segan.runs.run import Run
from segan.runs.transfer import verify_checkpoint
from segan.training.checkpointing import CheckpointManager, load_checkpoint
from segan.training.distributed import single_process_group
from segan.training.launch import train_local
from segan.training.metrics import StepMetrics
from segan.training.metrics_log import MetricsLog
from segan.training.step import SegAN
from segan.training.trainer import Callbacks, TrainingProgress
from tests.environment import temporary_environment
from tests.fault_proxy import Fault, FaultProxy, run_fault_proxy
from tests.training.helpers import configure

BUCKET = "costs"
STEPS = (100, 10_000, 1_000_000)
LOG_EVERY, STEPS_PER_FLUSH, STEPS_PER_EPOCH = 10, 10_000, 80  # an epoch of 2000 images in 25s
REPEATS = 5
BATCH_SIZE, CHECKPOINT_EVERY, LAST_STEP = 2, 2, 3  # stops after the next step
# A checkpoint after SLOW_EVERY steps, whose upload is not over when as many have followed.
SLOW_BYTES_PER_S, SLOW_EVERY, SLOW_ROWS = 5_000_000, 40, 200
T = TypeVar("T")


@contextmanager
def counted_s3() -> Iterator[FaultProxy]:
    """An S3 server, and a proxy in front of it that counts requests."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        for part in ("s3", "proxy"):
            (folder / part).mkdir()
        with s3_server(folder / "s3") as server, temporary_environment(server.environment):
            server.create_bucket(BUCKET)
            with run_fault_proxy(server.endpoint, folder / "proxy") as proxy:
                yield proxy


def timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = call()
    return result, round(time.perf_counter() - start, 3)


def methods(requests: list[str]) -> dict[str, int]:
    return dict(collections.Counter(request.split()[0] for request in requests))


def memory(name: str) -> int:
    """Bytes of this process, `VmRSS` or the peak `VmHWM`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(name))
    return 1024 * int(line.split()[1])


def measure_flush(proxy: FaultProxy) -> Iterator[dict[str, Any]]:
    """The flush after an epoch, in runs of different length."""
    for steps in STEPS:
        run = Run(f"s3://{BUCKET}/run-{steps}")
        log, step = MetricsLog(run, 0, 0), 0

        def flush(count: int, log: MetricsLog = log) -> None:
            nonlocal step
            for _ in range(0, count, LOG_EVERY):
                step += LOG_EVERY
                rates = {"learning_rate": 0.003, "critic_learning_rate": 0.003}
                values = {**rates, "k": 0.5, "images_per_second": 20.0}
                log.write(StepMetrics(step=step, epoch=1, **values), 25 * step)
            log.store(log.take(), durable=True)

        while step < steps:
            flush(min(steps, STEPS_PER_FLUSH))
        sizes = {file.name: file.size for file in storage.list_files(run.uri)}
        proxy.pop_requests()
        seconds = [timed(lambda: flush(STEPS_PER_EPOCH))[1] for _ in range(REPEATS)]
        requests = proxy.pop_requests()
        files = storage.list_files(run.uri)
        new = sum(file.size for file in files if file.size != sizes.get(file.name))
        log.close()
        yield {
            "steps": steps,
            "bytes before": sum(sizes.values()),
            "bytes per flush": new / REPEATS,
            "requests per flush": len(requests) / REPEATS,
            "seconds": [min(seconds), statistics.median(seconds), max(seconds)],
        }


def training(width: int, epochs: int, checkpoint_every: int, rows: int = 16) -> Config:
    records = f"s3://{BUCKET}/records"
    write_records(records, rows)
    sizes = {"epochs": epochs, "batch_size": BATCH_SIZE, "log_every_steps": 1}
    return configure(
        records,
        data={"validation": "train"},
        network={"width": width},
        training={**sizes, "checkpoint_every_steps": checkpoint_every},
        performance={"precision": "float32", "compile_mode": "none"},
        evaluation={"report": False, "batch_size": 1},
    )


def measure_epoch(proxy: FaultProxy) -> Iterator[dict[str, Any]]:
    """The requests between the ends of two epochs, each with a validation and a checkpoint."""
    config, counts = training(2, 6, 0), list[list[str]]()

    def on_validation_end(metrics: Any) -> bool:
        counts.append(proxy.pop_requests())
        return True

    train_local(config, Run(f"s3://{BUCKET}/run"), Callbacks(on_validation_end=on_validation_end))
    for epoch, requests in enumerate(counts[2:], 3):
        lists = sum("list-type" in request for request in requests)
        yield {"epoch": epoch, **methods(requests), "of them listings": lists}


def train_timed(
    config: Config, run: Run, last_step: int, on_step: Callable[[int], object] = lambda step: None
) -> tuple[dict[int, float], list[float]]:
    """Trains to the end of a step; returns when each step ended, and how long each save took."""
    ends, stood_still, save = dict[int, float](), list[float](), CheckpointManager.save

    def on_step_end(progress: TrainingProgress) -> None:
        step = progress.samples // BATCH_SIZE
        on_step(step)
        ends.setdefault(step, time.perf_counter())  # called once more after the validation

    def timed_save(*arguments: Any) -> None:
        stood_still.append(timed(lambda: save(*arguments))[1])

    # A stop comes before the validation, which takes memory of its own.
    with suppress(StoppedError), patch.object(CheckpointManager, "save", timed_save):
        train_local(config, run, Callbacks(on_step_end, should_stop=lambda: len(ends) >= last_step))
    return ends, stood_still


def measure_checkpoint(width: int) -> Iterator[dict[str, Any]]:
    """Saves within an epoch, then what is done with such a checkpoint."""
    config, run = training(width, 1, CHECKPOINT_EVERY), Run(f"s3://{BUCKET}/run")
    peaks = dict[int, int]()
    ends, stood_still = train_timed(
        config, run, LAST_STEP, lambda step: peaks.setdefault(step, memory("VmHWM"))
    )
    latest = run.latest_checkpoint()
    assert latest is not None
    size = sum(entry["size"] for entry in latest.files.values())
    before = peaks[CHECKPOINT_EVERY - 1]
    yield {
        "checkpoint bytes": size,
        "training stood still, s": stood_still,
        "seconds between ends of steps": [
            round(ends[step] - ends[step - 1], 2) for step in sorted(ends)[1:]
        ],
        "peak of steps without a checkpoint": before,
        "peak with checkpoints": max(peaks.values()),
        "extra, of the checkpoint": round((max(peaks.values()) - before) / size, 2),
    }
    _, seconds = timed(run.checkpoints)
    yield {"listed, s": seconds}
    _, seconds = timed(lambda: list(verify_checkpoint(latest)))
    yield {"verified, s": seconds}
    with single_process_group():
        model = SegAN(config, torch.device("cpu"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        resident = memory("VmRSS")
        _, seconds = timed(lambda: load_checkpoint(model, latest))
    yield {
        "loaded, s": seconds,
        "peak above what remains, of the checkpoint": round(
            (memory("VmHWM") - max(memory("VmRSS"), resident)) / size, 2
        ),
    }


def measure_slow_store(proxy: FaultProxy, width: int) -> Iterator[dict[str, Any]]:
    """The seconds per step before a save and beside its upload, with a fast and a slow store."""
    config = training(width, 1, SLOW_EVERY, SLOW_ROWS)
    for name, rate in (("fast", 0), ("slow", SLOW_BYTES_PER_S)):
        if rate:
            proxy.inject(Fault("slow", times=None, request_prefix="PUT", bytes_per_second=rate))
        run = Run(f"s3://{BUCKET}/{name}")
        ends, stood_still = train_timed(config, run, 2 * SLOW_EVERY + 1)
        seconds = {step: ends[step] - ends[step - 1] for step in sorted(ends)[1:]}
        yield {
            "store": name,
            "s per step before the save": statistics.median(
                seconds[step] for step in range(2, SLOW_EVERY + 1)
            ),
            "s per step beside the upload": statistics.median(
                seconds[step] for step in range(SLOW_EVERY + 2, 2 * SLOW_EVERY + 1)
            ),
            "training stood still, s": stood_still,
        }
    proxy.clear()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.save_costs", description=__doc__)
    parser.add_argument("what", choices=["flush", "epoch", "checkpoint", "slow"])
    parser.add_argument("--width", type=int, default=64)
    arguments = parser.parse_args()
    print(json.dumps({"load": os.getloadavg(), "threads": threading.active_count()}))
    with counted_s3() as proxy, ExitStack() as stack:
        measures = {
            "flush": lambda: measure_flush(proxy),
            "epoch": lambda: measure_epoch(proxy),
            "checkpoint": lambda: measure_checkpoint(arguments.width),
            "slow": lambda: measure_slow_store(proxy, arguments.width),
        }
        # Not for checkpoints: the proxy would need as much CPU time as the upload.
        counted = {} if arguments.what == "checkpoint" else {"AWS_ENDPOINT_URL": proxy.endpoint}
        stack.enter_context(temporary_environment(counted))
        for measurement in measures[arguments.what]():
            print(json.dumps(measurement), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

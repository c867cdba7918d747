"""Times several variants of the same work, interleaved in one process, and reports their rates."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """The measurements of one variant.

    Attributes:
        images: per repeat.
        seconds: of each repeat.
        roofline: minimum seconds of a repeat on this hardware.
        notes: further measurements by name.
    """

    name: str
    images: int
    seconds: tuple[float, ...]
    roofline: float
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median seconds of a repeat."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Images/s at the median."""
        return self.images / self.median

    @property
    def roofline_rate(self) -> float:
        """Images/s at the roofline."""
        return self.images / self.roofline

    @property
    def roofline_fraction(self) -> float:
        """Rate at the median / rate at the roofline."""
        return self.roofline / self.median


@dataclass(frozen=True)
class BenchReport:
    """The result of a benchmark; speedups are relative to the first variant.

    Attributes:
        roofline: how the roofline is derived.
    """

    title: str
    roofline: str
    timings: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable values, with the machine and the time."""
        first = self.timings[0].median / self.timings[0].images
        return {
            "title": self.title,
            "roofline": self.roofline,
            "machine": describe_machine(),
            "timestamp": time.strftime("%Y-%m-%d %H:%M %Z"),
            "timings": [
                {
                    "name": timing.name,
                    "images": timing.images,
                    "seconds": [round(s, 6) for s in timing.seconds],
                    "images_per_second": timing.rate,
                    "roofline_images_per_second": timing.roofline_rate,
                    "roofline_fraction": timing.roofline_fraction,
                    "speedup": first / (timing.median / timing.images),
                    **timing.notes,
                }
                for timing in self.timings
            ],
        }


@dataclass(frozen=True)
class RepeatTimes:
    """Wall and CPU seconds of each repeat.

    On a shared machine CPU time is the better measure, for a single thread: threads that wait for
    each other use CPU time too.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def to_timing(self, name: str, images: int, roofline: float) -> Timing:
        notes = {"CPU ms": 1000 * statistics.median(self.cpu)}
        return Timing(name, images, tuple(self.seconds), roofline, notes)


def interleave(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    synchronize: Callable[[], object] = lambda: None,
    on_progress: Callable[[str], object] = lambda message: None,
) -> dict[str, RepeatTimes]:
    """Runs the variants in turn, so that other load on the machine affects all of them alike.

    The first round is a warm-up and is not measured.

    Args:
        synchronize: waits for the device to finish the work submitted to it.
        on_progress: called with a message after each round.
    """
    times = {name: RepeatTimes() for name in variants}
    for repeat in range(repeats + 1):
        for name, work in variants.items():
            synchronize()
            start, cpu_start = time.perf_counter(), time.process_time()
            work()
            synchronize()
            if repeat:
                times[name].seconds.append(time.perf_counter() - start)
                times[name].cpu.append(time.process_time() - cpu_start)
        on_progress(f"repeat {repeat} of {repeats}" if repeat else "warmed up")
    return times


def get_synchronize(device: torch.device) -> Callable[[], object]:
    """A function that waits for the device to finish the work submitted to it."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def describe_machine() -> dict[str, Any]:
    """CPU, GPU, cores, load and versions, without which timings cannot be compared."""
    machine: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model na")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

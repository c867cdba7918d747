"""Several ways of doing the same work, taken in turn in one process, and how fast each was."""

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
    """One way of doing the work, measured.

    Attributes:
        images: of one repeat.
        seconds: of each repeat.
        floor: least seconds of a repeat that the hardware allows, where that is known.
        notes: more figures by name, of the same repeats.
    """

    name: str
    images: int
    seconds: tuple[float, ...]
    roofline: float | None = None
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds of the median repeat."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Images/s of the median repeat."""
        return self.images / self.median

    @property
    def roofline_rate(self) -> float | None:
        """Images/s at the floor."""
        return self.images / self.roofline if self.roofline else None

    @property
    def roofline_fraction(self) -> float | None:
        """Of the rate at the floor that was reached."""
        return self.roofline / self.median if self.roofline else None


@dataclass(frozen=True)
class BenchReport:
    """What a benchmark found; the first way is the one that the others are set beside.

    Attributes:
        floor: what the floor is made of, in words.
    """

    title: str
    roofline: str
    timings: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """As values for JSON, with the machine and when it was."""
        first = self.timings[0].median / self.timings[0].images
        return {
            "title": self.title,
            "roofline": self.roofline,
            "machine": describe_machine(),
            "timestamp": time.strftime("%Y-%m-%d %H:%M %Z"),
            "timings": [
                {
                    "name": way.name,
                    "images": way.images,
                    "seconds": [round(s, 6) for s in way.seconds],
                    "images_per_second": way.rate,
                    "roofline_images_per_second": way.roofline_rate,
                    "roofline_fraction": way.roofline_fraction,
                    "speedup": first / (way.median / way.images),
                    **way.notes,
                }
                for way in self.timings
            ],
        }


@dataclass(frozen=True)
class RepeatTimes:
    """Seconds of each repeat, and of them those that this process's threads were at work.

    The second says more on a machine that others use, with one thread: several that wait for
    each other are at work too.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def to_timing(self, name: str, images: int, roofline: float | None) -> Timing:
        notes = {"CPU ms": 1000 * statistics.median(self.cpu)}
        return Timing(name, images, tuple(self.seconds), roofline, notes)


def interleave(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    synchronize: Callable[[], object] = lambda: None,
    on_progress: Callable[[str], object] = lambda line: None,
) -> dict[str, RepeatTimes]:
    """Each way in turn, so that what else the machine does meets all of them.

    Each is first run once that does not count.

    Args:
        wait: for what a way has left to the device.
        tell: is given a line when a round is done.
    """
    taken = {name: RepeatTimes() for name in variants}
    for turn in range(repeats + 1):
        for name, work in variants.items():
            synchronize()
            began, busy = time.perf_counter(), time.process_time()
            work()
            synchronize()
            if turn:
                taken[name].seconds.append(time.perf_counter() - began)
                taken[name].cpu.append(time.process_time() - busy)
        on_progress(f"{'repeat ' + str(turn) + ' of ' + str(repeats) if turn else 'warmed up'}")
    return taken


def get_synchronize(device: torch.device) -> Callable[[], object]:
    """What waits until the device has done all that it was given."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def describe_machine() -> dict[str, Any]:
    """Device, cores and versions that a figure is worth nothing without."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model na")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

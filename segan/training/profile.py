"""Traces of a few training steps by torch's profiler."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from segan import storage
from segan.runs.run import PROFILE_FOLDER, Run
from segan.training.distributed import rank

SKIPPED_STEPS = 4  # in which memory is allocated, kernels are chosen and networks are compiled


@contextlib.contextmanager
def profile_steps(
    num_steps: int, run: Run, step: Callable[[], int]
) -> Iterator[Callable[[], None]]:
    """Traces rank 0's steps in the block, after the first SKIPPED_STEPS.

    Writes a Chrome trace to the run's folder `profile`, named by its last step.

    Args:
        num_steps: to trace; 0 traces nothing.
        step: returns the number of the step that was just done.

    Yields:
        A function to call after each step.
    """
    if num_steps == 0 or rank() > 0:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        with tempfile.TemporaryDirectory(prefix="segan-profile-") as folder:
            file = Path(folder, f"step_{step():07d}.json.gz")
            profiler.export_chrome_trace(str(file))
            uri = storage.join(run.uri, PROFILE_FOLDER, file.name)
            storage.write_bytes(uri, file.read_bytes())

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # The last skipped step warms the profiler up.
    steps = schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=num_steps, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as profiler:
        yield profiler.step

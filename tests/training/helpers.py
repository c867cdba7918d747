"""Trainings of seconds on a few synthetic images, and comparisons of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segan.config import Config, parse_config
from segan.runs.run import Run
from tests.timing import without_timing

FRAME = (180, 135)
ROWS, BATCH_SIZE, EPOCHS = 22, 4, 3
# 22 rows in steps of 4: the batches at rows 20 and 40 reach over the ends of epochs. Of 66 rows
# 16 steps take 64; an epoch ends with the first step at or past its last row.
STEPS = 16
EPOCH_END_SAMPLES = {1: 24, 2: 44, 3: 64}


def configure(records: str, **sections: dict[str, Any]) -> Config:
    base: dict[str, dict[str, Any]] = {
        "data": {"records": records},
        "network": {"width": 2},
        "optimizer": {"learning_rate": 0.001},
        "augment": {"crop": 64},
        "training": {"epochs": EPOCHS, "batch_size": BATCH_SIZE, "log_every_steps": 1},
        "cluster": {"threads_per_worker": 1},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return parse_config(base)


def load_weights(run: Run, name: str = "segmentor") -> dict[str, torch.Tensor]:
    latest = run.latest_checkpoint()
    assert latest is not None
    return load(latest.read(f"{name}.safetensors"))


def same_weights(one: Run, other: Run) -> bool:
    pairs = (
        (load_weights(one, name), load_weights(other, name)) for name in ("segmentor", "critic")
    )
    return all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in pairs)


def metric_lines(run: Run) -> list[dict[str, Any]]:
    """Metrics without those that depend on the clock."""
    return without_timing(run.metrics())


def scalar_steps(run: Run, name: str) -> list[int]:
    events = EventAccumulator(f"{run.uri}/tensorboard")
    events.Reload()
    return [event.step for event in events.Scalars(name)]


def flip_byte(uri: str) -> None:
    path = Path(uri)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

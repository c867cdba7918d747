"""Runs and studies in storage with metrics that are written by hand, without a training."""

from __future__ import annotations

import json
from typing import Any

from segan import storage
from segan.config import Config, load_config
from segan.runs.run import Run
from segan.runs.study import Study

FINGERPRINT = "0" * 64
SAMPLES_PER_EPOCH = 20


def epoch_lines(epoch: int, jaccard: float) -> list[dict[str, Any]]:
    """A step and its epoch, of 8 s training and 2 s validation."""
    samples = SAMPLES_PER_EPOCH * epoch
    step = {"kind": "step", "samples": samples, "step": 5 * epoch, "epoch": epoch, "k": 1.0}
    return [
        step | {"learning_rate": 0.003, "segmentor_loss": 0.5 / epoch},
        {
            "kind": "epoch",
            "samples": samples,
            "step": 5 * epoch,
            "epoch": epoch,
            "jaccard": jaccard,
            "jaccard_curve": [0.1, jaccard],
            "threshold": 0.5,
            "seconds": 8.0,
            "stage_seconds": {"validation": 2.0, "segmentor": 3.0},
            "images_per_second": 2.5,
        },
    ]


def store_metrics(run: Run, *jaccards: float) -> None:
    """Writes the metrics of a run that has validated as many epochs."""
    lines = [line for e, jaccard in enumerate(jaccards, 1) for line in epoch_lines(e, jaccard)]
    content = "".join(f"{json.dumps(line)}\n" for line in lines)
    storage.write_bytes(storage.join(run.uri, "metrics.jsonl"), content.encode())


def store_run(uri: str, *jaccards: float, epochs: int = 4) -> Run:
    """A run of some epochs with its description and metrics."""
    run = Run(uri)
    run.create_or_resume(load_config(None, [f"training.epochs={epochs}"]), FINGERPRINT)
    store_metrics(run, *jaccards)
    return run


def store_study(uri: str, *overrides: str, epochs: int = 4) -> tuple[Study, Config]:
    """A study whose trials have not started."""
    config = load_config(None, [f"training.epochs={epochs}", *overrides])
    study = Study(uri)
    study.create_or_resume(config, FINGERPRINT)
    return study, config

"""Runs and predictors with untrained weights, for tests that need a model."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch.optim.swa_utils import update_bn

from segan import storage
from segan.config import Config, load_config, parse_config
from segan.inference.predictor import Member, Predictor
from segan.networks.segmentor import Segmentor, build_segmentor
from segan.runs.checkpoint import Checkpoint, CheckpointInfo
from segan.runs.run import Run

FRAME = (90, 68)  # width, height


def small_config(**sections: dict[str, Any]) -> Config:
    return parse_config({"network": {"width": 2}, "augment": {"crop": 64}, **sections})


def small_segmentor(config: Config, seed: int = 0) -> Segmentor:
    """In evaluation mode, with norms calibrated on noise, so that maps cross 0.5."""
    segmentor = build_segmentor(config.network, seed)
    update_bn([torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))], segmentor)
    segmentor.logistic.set_k(0.5)
    return segmentor.eval()


def untrained_predictor(
    seeds: Sequence[int] = (0,),
    labels: tuple[str, ...] = ("lesion",),
    **sections: dict[str, Any],
) -> Predictor:
    """A model in memory, with a member for each seed and thresholds of 0.5."""
    config = small_config(**{"network": {"width": 2, "classes": len(labels)}, **sections})
    thresholds = (0.5,) * len(labels)
    members = [
        Member(functools.partial(small_segmentor, config, seed), config, thresholds, f"seed {seed}")
        for seed in seeds
    ]
    return Predictor(members, FRAME, 0.5, "untrained", labels)


def save_checkpoint(run: Run, config: Config, epoch: int, jaccard: float, threshold: float) -> str:
    """Saves a checkpoint with weights seeded by the epoch; returns its URI."""
    info = CheckpointInfo(
        epochs=epoch,
        samples=100 * epoch,
        metrics={"jaccard": jaccard, "threshold": threshold},
        fingerprint="none",
        frame={"width": FRAME[0], "height": FRAME[1]},
        config=config.model_dump(mode="json"),
    )
    return save_weights(run, config, info)


def save_weights(run: Run, config: Config, info: CheckpointInfo) -> str:
    """Saves a checkpoint with weights seeded by the epoch; returns its URI."""
    weights = save(small_segmentor(config, info.epochs).state_dict())
    name = f"epoch_{info.epochs:05d}"
    return run.save_checkpoint(name, {"segmentor.safetensors": weights}, info).uri


def tiny_config(records: str = "", *overrides: str) -> Config:
    """The config of a run that trains in a second."""
    model = ["network.width=2", "augment.crop=64", "training.batch_size=4", "training.epochs=1"]
    local = ["cluster.threads_per_worker=1", f"data.records={json.dumps(records)}"]
    return load_config(None, [*model, *local, *overrides])


def run_uri(checkpoint: Checkpoint) -> str:
    return checkpoint.uri.rsplit("/checkpoints/", 1)[0]


def read_files(uri: str) -> dict[str, bytes]:
    """Every file below a URI, by name."""
    return {f.name: storage.read_bytes(f"{uri}/{f.name}") for f in storage.list_files(uri)}


def copy_files(source: str, target: str) -> None:
    for name, body in read_files(source).items():
        storage.write_bytes(f"{target}/{name}", body)

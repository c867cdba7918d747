"""A checkpoint whose files match its manifest, and yet are not those of a training."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from segan.errors import CorruptedError
from segan.runs.checkpoint import Checkpoint, CheckpointInfo
from segan.runs.run import Run
from segan.training.checkpointing import (
    TRAINER_FILE,
    Snapshot,
    checkpoint_tensors,
    gather_batch_norm_stats,
    load_checkpoint,
)
from segan.training.distributed import single_process_group
from segan.training.step import SegAN
from tests.inference.models import tiny_config


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_in_a_checkpoint_does_not_run(tmp_path: Path, protocol: int) -> None:
    config, planted = tiny_config(), tmp_path / "planted"
    with single_process_group():
        model = SegAN(config, torch.device("cpu"))
        snapshot = Snapshot(torch.device("cpu"))
        snapshot.take(checkpoint_tensors(model, gather_batch_norm_stats(model)))
        content = pickle.dumps({"segmentor_optimizer": Payload(planted)}, protocol)
        pickle.loads(content)
        assert planted.is_dir(), "the payload works"
        planted.rmdir()
        info = CheckpointInfo(
            epochs=1, samples=10, metrics={}, config=config.model_dump(mode="json")
        )
        saved: Checkpoint = Run(str(tmp_path / "run")).save_checkpoint(
            "epoch_00001", {**snapshot.files(), TRAINER_FILE: content}, info
        )
        with pytest.raises(CorruptedError, match="not a safetensors file"):
            load_checkpoint(model, saved)
    assert not planted.exists()

"""The maps of the validation frames: how a model segments them, and where a baseline keeps them.

    <run>/probabilities/<SHA-256 of the weights>.npy, and with TTA in probabilities-tta/

float32 [N, classes, H, W] in [0, 1], in the order of the records, as in
`segan.evaluation.probability_cache`.
"""

from __future__ import annotations

import io

import numpy as np
import torch

from segan import storage
from segan.data.records.frames import FrameShare
from segan.errors import CorruptedError, NotFoundError
from segan.inference.predictor import Member
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.runs.run import Run


def segment(member: Member, frames: FrameShare) -> np.ndarray:
    """The maps of all frames, float32 [N, classes, H, W]."""
    size = member.config.evaluation.batch_size
    maps = [member(torch.tensor(samples.image)).cpu().numpy() for samples in frames.batches(size)]
    return np.concatenate(maps)


def write_probabilities(run: Run, checkpoint: Checkpoint, tta: bool, maps: np.ndarray) -> None:
    """Keeps the maps of a run's checkpoint."""
    buffer = io.BytesIO()
    np.save(buffer, maps, allow_pickle=False)
    run.fence()
    storage.write_bytes(_uri(run, checkpoint, tta), buffer.getvalue())


def read_probabilities(run: Run, checkpoint: Checkpoint, tta: bool) -> np.ndarray:
    """The maps of a run's checkpoint.

    Raises:
        NotFoundError: the run has not ended, so that it has none.
        CorruptedError: the file is not one of maps.
    """
    uri = _uri(run, checkpoint, tta)
    if not storage.exists(uri):
        raise NotFoundError(f"{uri}: not found; let python -m baselines.train {run} end first")
    try:
        maps: np.ndarray = np.load(io.BytesIO(storage.read_bytes(uri)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CorruptedError(f"{uri}: not an array ({error}); train again to its end") from None
    if maps.ndim != 4 or maps.dtype != np.float32:
        raise CorruptedError(f"{uri}: expected float32 [N, classes, H, W], found another array")
    return maps


def _uri(run: Run, checkpoint: Checkpoint, tta: bool) -> str:
    folder = "probabilities-tta" if tta else "probabilities"
    return storage.join(run.uri, folder, f"{checkpoint.entry(SEGMENTOR_FILE)['sha256']}.npy")

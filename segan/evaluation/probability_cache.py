"""Probability maps of the validation frames, of as many models as one wishes, one in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segan.data.records.format import Samples
from segan.evaluation.sweep import Sweep
from segan.inference.frames import mean_map
from segan.inference.predictor import Member
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint

BATCH_SIZE = 25  # frames whose maps are in memory at once
MAX_CPU_BATCH_SIZE = 5  # frames that a CPU takes at once: more need memory and save no time


class ProbabilityCache:
    """Every model's probability maps of the validation frames.

    Each model runs over the frames once, alone in memory; its maps lie in a file, from which a
    batch is read at a time.
    """

    def __init__(self, samples: Samples, folder: Path, log: Callable[[str], None] = lambda _: None):
        """
        Args:
            folder: for the files, 4 bytes a pixel of every frame for each model.
            tell: is given a line when a model begins.
        """
        self.samples, self.folder, self.log = samples, folder, log

    def get(self, checkpoint: Checkpoint) -> np.ndarray:
        """float32 [N, classes, H, W] in [0, 1], read from the file where it is looked at."""
        file = self.folder / f"{checkpoint.files[SEGMENTOR_FILE]['sha256']}.npy"
        if not file.exists():
            self.log(f"segmenting {len(self.samples.ids)} validation frames with {checkpoint.uri}")
            member = Member.from_checkpoint(checkpoint)
            size = member.config.evaluation.batch_size
            size = size if torch.cuda.is_available() else min(size, MAX_CPU_BATCH_SIZE)
            maps = np.lib.format.open_memmap(file, "w+", np.float32, self.samples.mask.shape)
            for batch in batch_slices(len(maps), size):
                maps[batch] = member(torch.tensor(self.samples.image[batch])).cpu().numpy()
        probabilities: np.ndarray = np.load(file, mmap_mode="r")
        return probabilities

    def iter_mean(self, members: Sequence[Checkpoint]) -> Iterator[tuple[slice, Tensor]]:
        """The mean of the members' maps, [B, classes, H, W], batch by batch."""
        maps = [self.get(member) for member in members]
        for batch in batch_slices(len(self.samples.ids), BATCH_SIZE):
            yield batch, mean_map(torch.tensor(probabilities[batch]) for probabilities in maps)

    def sweep(self, members: Sequence[Checkpoint]) -> Sweep:
        """The scores of the mean of the members' maps at every threshold."""
        sweep = Sweep.empty(self.samples.mask.shape[1])
        for part, mean in self.iter_mean(members):
            sweep.update(mean, torch.tensor(self.samples.mask[part]))
        return sweep

    def jaccard(self, members: Sequence[Checkpoint]) -> float:
        """Of the mean of the members' maps, at its best threshold."""
        return float(self.sweep(members).curve().max())


def batch_slices(count: int, size: int) -> Iterator[slice]:
    """The slices of at most `size` that make up `count`."""
    return (slice(at, at + size) for at in range(0, count, size))

"""Cache of the validation frames' probability maps, for any number of models."""

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
MAX_CPU_BATCH_SIZE = 5  # larger batches need more memory on a CPU and are not faster


class ProbabilityCache:
    """Probability maps of the validation frames by model.

    Each model runs over the frames once, with no other model in memory. Its maps are written to a
    memory-mapped file and read one batch at a time.
    """

    def __init__(self, samples: Samples, folder: Path, log: Callable[[str], None] = lambda _: None):
        """
        Args:
            folder: where the files go: 4 bytes per pixel and model.
            log: called with a message before each model runs.
        """
        self.samples, self.folder, self.log = samples, folder, log

    def get(self, checkpoint: Checkpoint) -> np.ndarray:
        """A model's maps, float32 [N, classes, H, W] in [0, 1], memory-mapped.

        Runs the model on the first call.
        """
        file = self.folder / f"{checkpoint.entry(SEGMENTOR_FILE)['sha256']}.npy"
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
        """Yields batches: the slice of the frames and the members' mean map [B, classes, H, W]."""
        maps = [self.get(member) for member in members]
        for batch in batch_slices(len(self.samples.ids), BATCH_SIZE):
            yield batch, mean_map(torch.tensor(probabilities[batch]) for probabilities in maps)

    def sweep(self, members: Sequence[Checkpoint]) -> Sweep:
        """Scores of the members' mean map at every threshold."""
        sweep = Sweep.empty(self.samples.mask.shape[1])
        for batch, mean in self.iter_mean(members):
            sweep.update(mean, torch.tensor(self.samples.mask[batch]))
        return sweep

    def jaccard(self, members: Sequence[Checkpoint]) -> float:
        """The Jaccard of the members' mean map, mean over classes, each at its best threshold."""
        return float(self.sweep(members).class_curves().max(1).mean())


def batch_slices(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    return (slice(at, at + size) for at in range(0, count, size))

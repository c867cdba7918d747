"""Probability maps of the validation frames, of as many models as one wishes, one in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segan.data.records import Frames
from segan.evaluation.sweep import Sweep
from segan.inference.frames import mean_map
from segan.inference.predictor import Member
from segan.runs import SEGMENTOR, Checkpoint

BATCH = 25  # frames whose maps are in memory at once
ON_CPU = 5  # frames that a CPU takes at once: more need memory and save no time


class ValidationMaps:
    """Every model's probability maps of the validation frames.

    Each model runs over the frames once, alone in memory; its maps lie in a file, from which a
    batch is read at a time.
    """

    def __init__(self, frames: Frames, folder: Path, tell: Callable[[str], None] = lambda _: None):
        """
        Args:
            folder: for the files, 4 bytes a pixel of every frame for each model.
            tell: is given a line when a model begins.
        """
        self.frames, self.folder, self.tell = frames, folder, tell

    def of(self, checkpoint: Checkpoint) -> np.ndarray:
        """float32 [N, classes, H, W] in [0, 1], read from the file where it is looked at."""
        file = self.folder / f"{checkpoint.files[SEGMENTOR]['sha256']}.npy"
        if not file.exists():
            self.tell(f"segmenting {len(self.frames.ids)} validation frames with {checkpoint.uri}")
            member = Member.of(checkpoint)
            size = member.config.evaluation.batch_size
            size = size if torch.cuda.is_available() else min(size, ON_CPU)
            maps = np.lib.format.open_memmap(file, "w+", np.float32, self.frames.mask.shape)
            for part in parts(len(maps), size):
                maps[part] = member(torch.tensor(self.frames.image[part])).cpu().numpy()
        found: np.ndarray = np.load(file, mmap_mode="r")
        return found

    def means(self, members: Sequence[Checkpoint]) -> Iterator[tuple[slice, Tensor]]:
        """The mean of the members' maps, [B, classes, H, W], batch by batch."""
        maps = [self.of(member) for member in members]
        for part in parts(len(self.frames.ids), BATCH):
            yield part, mean_map(torch.tensor(one[part]) for one in maps)

    def sweep(self, members: Sequence[Checkpoint]) -> Sweep:
        """The scores of the mean of the members' maps at every threshold."""
        sweep = Sweep.empty(self.frames.mask.shape[1])
        for part, mean in self.means(members):
            sweep.add(mean, torch.tensor(self.frames.mask[part]))
        return sweep

    def jaccard(self, members: Sequence[Checkpoint]) -> float:
        """Of the mean of the members' maps, at its best threshold."""
        return float(self.sweep(members).curve().max())


def parts(count: int, size: int) -> Iterator[slice]:
    """The slices of at most `size` that make up `count`."""
    return (slice(at, at + size) for at in range(0, count, size))

"""Masks for any image: a trained segmentor, or an ensemble of them, behind one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load as load_tensors
from torch import Tensor

from segan import storage
from segan.inference.ensemble import is_ensemble, read_ensemble
from segan.inference.frames import mean_map, segment_frames
from segan.networks.segmentor import Segmentor
from segan.runs import SEGMENTOR, Checkpoint, find_checkpoint


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one image, at that image's size.

    Attributes:
        probability: float32 [H, W] in [0, 1].
        mask: bool [H, W], where the probability is above the threshold.
    """

    probability: np.ndarray
    mask: np.ndarray


class Member:
    """One segmentor of a model, in memory or read anew for each batch of frames."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, hold: bool = True):
        self.checkpoint, self.device = checkpoint, device
        self.config, self.threshold = checkpoint.config, checkpoint.threshold
        self._held = self._read() if hold else None

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to probabilities [B, classes, H, W]."""
        segmentor = self._read() if self._held is None else self._held
        return segment_frames(segmentor, frames.to(self.device), self.config)

    def _read(self) -> Segmentor:
        return read_segmentor(self.checkpoint).to(self.device)


class Predictor:
    """A model with the size of its frames and its threshold: the mean of its members' maps.

    A checkpoint is a model of one member, an ensemble one of three.

    predictor = Predictor.load("s3://bucket/runs/first")
    mask = predictor(Image.open("ISIC_0000000.jpg")).mask
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        threshold: float,
        name: str,
        one_at_a_time: bool = False,
        device: torch.device | None = None,
    ):
        """
        Args:
            checkpoints: of the members, which share the size of their frames.
            threshold: in (0, 1); probability above it is lesion.
            name: of the model, from which it can be loaded again.
            one_at_a_time: holds no segmentor in memory, and reads each when its turn comes.
        """
        (self.size,) = {checkpoint.size for checkpoint in checkpoints}
        device = device or best_device()
        self.members = [Member(checkpoint, device, not one_at_a_time) for checkpoint in checkpoints]
        self.threshold, self.name = threshold, name

    @classmethod
    def load(
        cls, uri: str, threshold: float | None = None, one_at_a_time: bool = False
    ) -> Predictor:
        """An ensemble or a checkpoint by its URI, or the best checkpoint of a run by the run's.

        Args:
            threshold: None for the one that was best on validation.
            one_at_a_time: for models that do not fit into memory together; slow.

        Raises:
            StorageError: there is none, or it does not match its checksums.
        """
        uri = storage.normalise(uri)
        storage.check_access(uri)
        if is_ensemble(uri):
            ensemble = read_ensemble(uri)
            checkpoints, best = ensemble.checkpoints(uri), ensemble.threshold
        else:
            checkpoint = find_checkpoint(uri)
            checkpoints, best, uri = [checkpoint], checkpoint.threshold, checkpoint.uri
        return cls(checkpoints, best if threshold is None else threshold, uri, one_at_a_time)

    def __call__(self, image: Image.Image) -> Prediction:
        """Segments one image of any size; the map is brought back to that size bilinearly."""
        frames = self._frames(image)
        maps = mean_map(member(frames) for member in self.members)
        return _prediction(maps, image.size, self.threshold)

    def compare(self, image: Image.Image) -> Iterator[Prediction]:
        """What each member alone makes of an image at its own threshold, then what all do."""
        frames = self._frames(image)
        maps = [member(frames) for member in self.members]
        for member, own in zip(self.members, maps, strict=True):
            yield _prediction(own, image.size, member.threshold)
        yield _prediction(mean_map(maps), image.size, self.threshold)

    def _frames(self, image: Image.Image) -> Tensor:
        frame = image.convert("RGB").resize(self.size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(frame)).unsqueeze(0)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_segmentor(checkpoint: Checkpoint) -> Segmentor:
    """The segmentor of a checkpoint, its weights verified, in evaluation mode."""
    segmentor = Segmentor(checkpoint.config.network)
    segmentor.load_state_dict(load_tensors(checkpoint.read(SEGMENTOR)))
    return segmentor.eval()


def _prediction(maps: Tensor, size: tuple[int, int], threshold: float) -> Prediction:
    width, height = size
    full = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    probability = full[0, 0].cpu().numpy()
    return Prediction(probability, probability > threshold)

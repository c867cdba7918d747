"""Masks for any image: a trained segmentor, or an ensemble of them, behind one call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load as load_tensors
from torch import Tensor

from segan import storage
from segan.config import Config
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


@dataclass(frozen=True)
class Member:
    """One segmentor of a model.

    Attributes:
        read: gives it, in evaluation mode: from memory, or from storage at each call.
        config: of its run, which says how a frame is put in.
        threshold: of its own maps, in (0, 1).
        name: the URI of its checkpoint, for tables.
    """

    read: Callable[[], Segmentor]
    config: Config
    threshold: float
    name: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, hold: bool = True) -> Member:
        """A checkpoint's; raises StorageError at once where it is to be held and is damaged."""
        read: Callable[[], Segmentor] = functools.partial(read_segmentor, checkpoint)
        if hold:
            read = functools.cache(read)
            read()
        return cls(read, checkpoint.config, checkpoint.threshold, checkpoint.uri)

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to probabilities [B, classes, H, W], on the best device."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return segment_frames(self.read().to(device), frames.to(device), self.config)


class Predictor:
    """A model with the size of its frames and its threshold: the mean of its members' maps.

    A checkpoint is a model of one member, an ensemble one of three.

    predictor = Predictor.load("s3://bucket/runs/first")
    mask = predictor(Image.open("ISIC_0000000.jpg")).mask
    """

    def __init__(
        self, members: Sequence[Member], size: tuple[int, int], threshold: float, name: str
    ):
        """
        Args:
            size: (width, height) in pixels of a frame.
            threshold: in (0, 1); probability above it is lesion.
            name: of the model, from which it can be loaded again.
        """
        self.members, self.size, self.threshold, self.name = members, size, threshold, name

    @classmethod
    def load(
        cls, uri: str, threshold: float | None = None, one_at_a_time: bool = False
    ) -> Predictor:
        """An ensemble or a checkpoint by its URI, or the best checkpoint of a run by the run's.

        Args:
            threshold: None for the one that was best on validation.
            one_at_a_time: reads each member when its turn comes, for models that do not fit into
                memory together; slow.

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
        return cls(
            [Member.of(checkpoint, hold=not one_at_a_time) for checkpoint in checkpoints],
            checkpoints[0].size,
            best if threshold is None else threshold,
            uri,
        )

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

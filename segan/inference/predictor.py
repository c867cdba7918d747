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
from segan.inference.frames import mean_map, segment_frames
from segan.networks.segmentor import Segmentor
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.runs.ensemble import is_ensemble, read_ensemble
from segan.runs.run import find_checkpoint


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
        sha256: of its weights in storage; "" where they are in memory alone.
    """

    read: Callable[[], Segmentor]
    config: Config
    threshold: float
    name: str
    sha256: str = ""

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, cache: bool = True, tta: bool | None = None
    ) -> Member:
        """A checkpoint's; raises StorageError at once where it is to be held and is damaged.

        Args:
            flips: instead of its configuration's `evaluation.tta`.
        """
        read: Callable[[], Segmentor] = functools.partial(read_segmentor, checkpoint)
        if cache:
            read = functools.cache(read)
            read()
        config = checkpoint.config
        if tta is not None:
            evaluation = config.evaluation.model_copy(update={"tta": tta})
            config = config.model_copy(update={"evaluation": evaluation})
        sha256 = checkpoint.files[SEGMENTOR_FILE]["sha256"]
        return cls(read, config, checkpoint.threshold, checkpoint.uri, sha256)

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
        self, members: Sequence[Member], frame_size: tuple[int, int], threshold: float, name: str
    ):
        """
        Args:
            size: (width, height) in pixels of a frame.
            threshold: in (0, 1); probability above it is lesion.
            name: of the model, from which it can be loaded again.
        """
        self.members, self.frame_size, self.threshold, self.name = (
            members,
            frame_size,
            threshold,
            name,
        )

    @classmethod
    def load(
        cls,
        uri: str,
        threshold: float | None = None,
        low_memory: bool = False,
        tta: bool | None = None,
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
            [Member.from_checkpoint(checkpoint, not low_memory, tta) for checkpoint in checkpoints],
            checkpoints[0].frame_size,
            best if threshold is None else threshold,
            uri,
        )

    def __call__(self, image: Image.Image) -> Prediction:
        """Segments one image of any size; the map is brought back to that size bilinearly."""
        return self.postprocess(self.predict_proba(self.preprocess(image)[None])[0], image.size)

    def predict_members(self, image: Image.Image) -> Iterator[Prediction]:
        """What each member alone makes of an image at its own threshold, then what all do."""
        maps = self.predict_proba(self.preprocess(image)[None])[0]
        yield from self.postprocess_members(maps, image.size)
        yield self.postprocess(maps, image.size)

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image as its members see it: uint8 [H, W, 3] of the model's frame."""
        frame = image.convert("RGB").resize(self.frame_size, Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(frame))

    def predict_proba(self, frames: Tensor) -> Tensor:
        """Each member's map of each frame; but for rounding, its company makes no difference.

        Args:
            frames: uint8 [B, H, W, 3], of any number of images.

        Returns:
            float32 [B, members, H, W] in [0, 1], of the first class, on the host.
        """
        return torch.stack([member(frames)[:, 0] for member in self.members], dim=1).cpu()

    def postprocess(
        self, maps: Tensor, size: tuple[int, int], threshold: float | None = None
    ) -> Prediction:
        """One image's prediction, as a call would give it, of its members' maps.

        Args:
            maps: float32 [members, H, W], one image's of `maps`.
            size: (width, height) in pixels of the image.
            threshold: None for the model's own.
        """
        probability = resize_map(mean_map(maps), size)
        above = self.threshold if threshold is None else threshold
        return Prediction(probability, probability > above)

    def postprocess_members(self, maps: Tensor, size: tuple[int, int]) -> Iterator[Prediction]:
        """What `finish` gives of each member alone, at its own threshold."""
        for member, own in zip(self.members, maps, strict=True):
            yield self.postprocess(own[None], size, member.threshold)


def resize_map(values: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map of a frame, float32 [h, w], resized bilinearly to an image's (width, height)."""
    width, height = size
    full = F.interpolate(values[None, None], (height, width), mode="bilinear", align_corners=False)
    return full[0, 0].numpy()


def read_segmentor(checkpoint: Checkpoint) -> Segmentor:
    """The segmentor of a checkpoint, its weights verified, in evaluation mode."""
    segmentor = Segmentor(checkpoint.config.network)
    segmentor.load_state_dict(load_tensors(checkpoint.read(SEGMENTOR_FILE)))
    return segmentor.eval()

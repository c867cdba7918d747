"""Masks for any image: a trained segmentor behind one call."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load as load_tensors

from segan.config import Config
from segan.inference.frames import segment_frames
from segan.networks.segmentor import Segmentor
from segan.runs import Checkpoint, find_checkpoint


@dataclass(frozen=True)
class Prediction:
    """What S makes of one image, at that image's size.

    Attributes:
        probability: float32 [H, W] in [0, 1].
        mask: bool [H, W], where the probability is above the threshold.
    """

    probability: np.ndarray
    mask: np.ndarray


class Predictor:
    """A segmentor with the size of the frames it was trained on and its threshold.

    predictor = Predictor.load("s3://bucket/runs/first")
    mask = predictor(Image.open("ISIC_0000000.jpg")).mask
    """

    def __init__(
        self,
        segmentor: Segmentor,
        config: Config,
        size: tuple[int, int],
        threshold: float,
        name: str,
        device: torch.device | None = None,
    ):
        """
        Args:
            size: (width, height) in pixels of a frame.
            threshold: in (0, 1); probability above it is lesion.
            name: of the model, for tables.
        """
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.segmentor = segmentor.eval().to(self.device)
        self.config, self.size, self.threshold, self.name = config, size, threshold, name

    @classmethod
    def load(cls, uri: str, threshold: float | None = None) -> Predictor:
        """A checkpoint by its URI, or the best one of a run by the run's.

        Args:
            threshold: None for the one that was best on validation.

        Raises:
            StorageError: there is none, or it does not match its checksums.
        """
        checkpoint = find_checkpoint(uri)
        frame, metrics = checkpoint.info["frame"], checkpoint.info["metrics"]
        return cls(
            read_segmentor(checkpoint),
            checkpoint.config,
            (frame["width"], frame["height"]),
            metrics["threshold"] if threshold is None else threshold,
            checkpoint.uri,
        )

    def __call__(self, image: Image.Image) -> Prediction:
        """Segments one image of any size; the map is brought back to that size bilinearly."""
        width, height = image.size
        frame = image.convert("RGB").resize(self.size, Image.Resampling.BILINEAR)
        frames = torch.from_numpy(np.array(frame)).unsqueeze(0).to(self.device)
        maps = segment_frames(self.segmentor, frames, self.config)
        full = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
        probability = full[0, 0].cpu().numpy()
        return Prediction(probability, probability > self.threshold)


def read_segmentor(checkpoint: Checkpoint) -> Segmentor:
    """The segmentor of a checkpoint, its weights verified, in evaluation mode."""
    segmentor = Segmentor(checkpoint.config.network)
    segmentor.load_state_dict(load_tensors(checkpoint.read("segmentor.safetensors")))
    return segmentor.eval()

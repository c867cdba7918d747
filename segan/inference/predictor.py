"""Loads a trained segmentor or an ensemble and segments images of any size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from segan import storage
from segan.config import Config
from segan.errors import CorruptedError, UsageError
from segan.inference.frames import mean_map, segment_frames
from segan.inference.huggingface import is_hub_model, read_hub_model, read_hub_segmentor
from segan.inference.images import ImageSource, to_image
from segan.inference.thresholds import above_thresholds
from segan.inference.upload import resize_to_frame
from segan.inference.weights import read_segmentor
from segan.networks.segmentor import Segmentor
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.runs.ensemble import is_ensemble, read_ensemble
from segan.runs.run import find_checkpoint
from segan.runs.shipped import locate_model
from segan.utils.labels import LESION, find_class
from segan.utils.text import shorten


@dataclass(frozen=True)
class Prediction:
    """A model's output for one image, at the image's size.

    Attributes:
        probability: float32 [H, W] in [0, 1]; of a model with several classes [classes, H, W].
        mask: bool of the same shape; true where the probability is above the class's threshold.
            Masks of several classes may overlap.
        class_names: in the order of the maps.
    """

    probability: np.ndarray
    mask: np.ndarray
    class_names: tuple[str, ...] = (LESION,)

    def __getitem__(self, name: str) -> Prediction:
        """The prediction of one class, [H, W]; raises UsageError if there is no such class."""
        number = find_class(self.class_names, name)
        if len(self.class_names) == 1:
            return self
        return Prediction(self.probability[number], self.mask[number], (name,))

    def by_class(self) -> dict[str, Prediction]:
        """The prediction of each class, [H, W] each, by its name."""
        return {name: self[name] for name in self.class_names}


@dataclass(frozen=True)
class Member:
    """One segmentor of a model.

    Attributes:
        read: returns the segmentor in evaluation mode, from memory or from storage.
        config: of its run; `evaluation` selects how frames are segmented.
        thresholds: for its own maps, of each class, in (0, 1).
        name: the URI of its checkpoint.
        sha256: of its weights in storage; "" if they exist only in memory.
        device: that it runs on; None for the GPU if there is one, else the CPU.
    """

    read: Callable[[], Segmentor]
    config: Config
    thresholds: tuple[float, ...]
    name: str
    sha256: str = ""
    device: torch.device | None = None

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, cache: bool = True, tta: bool | None = None
    ) -> Member:
        """The member of a checkpoint.

        Args:
            cache: read the weights now and keep them in memory, instead of reading them per call.
            tta: overrides the configuration's `evaluation.tta`.

        Raises:
            StorageError: with `cache`, the weights cannot be read or do not match their checksum.
        """
        read: Callable[[], Segmentor] = functools.partial(read_segmentor, checkpoint)
        if cache:
            read = functools.cache(read)
            read()
        config = checkpoint.config
        if tta is not None:
            config = config.with_overrides({"evaluation.tta": tta})
        sha256 = checkpoint.entry(SEGMENTOR_FILE)["sha256"]
        return cls(read, config, checkpoint.thresholds, checkpoint.uri, sha256)

    def __call__(self, frames: Tensor) -> Tensor:
        """Maps [B, classes, H, W] of frames, uint8 [B, H, W, 3]; on its device."""
        device = self.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return segment_frames(self.read().to(device), frames.to(device), self.config)


class Predictor:
    """A model whose probability map is the mean of its members' maps.

    A checkpoint is a model with one member, an ensemble a model with three.

    predictor = Predictor.load("isic2017")
    mask = predictor.predict("ISIC_0000000.jpg").mask
    """

    def __init__(
        self,
        members: Sequence[Member],
        frame_size: tuple[int, int],
        thresholds: float | Sequence[float],
        name: str,
        labels: tuple[str, ...] = (LESION,),
    ):
        """
        Args:
            frame_size: (width, height) of a frame in pixels.
            thresholds: of each class, or one for all; in [0, 1]; a probability above it is lesion.
            name: of the model: what to load it by.
            labels: the names of the classes.
        """
        self.members, self.frame_size = members, frame_size
        self.thresholds, self.name = _per_class(thresholds, len(labels)), name
        self.class_names = labels

    @property
    def threshold(self) -> float:
        """The threshold of the only class; raises UsageError if there are several."""
        if len(self.class_names) > 1:
            raise UsageError(
                f"{self.name}: has a threshold for each of {', '.join(self.class_names)}; use "
                "thresholds"
            )
        return self.thresholds[0]

    @classmethod
    def load(
        cls,
        model: str,
        threshold: float | None = None,
        low_memory: bool = False,
        tta: bool | None = None,
        device: str | torch.device | None = None,
    ) -> Predictor:
        """Loads a model.

        Args:
            model: the name of a model that ships with segan, such as `isic2017`, or the URI of an
                ensemble, a checkpoint, a run, of which the best checkpoint is used, or a folder of
                the Hugging Face Hub that `segan export` wrote.
            threshold: of all classes; None for the best threshold of each on validation.
            low_memory: read each member's weights per call instead of keeping all in memory; slow.
            tta: overrides the runs' `evaluation.tta`.
            device: to run on, such as "cpu" or "cuda:1"; None for the GPU if there is one.

        Raises:
            UsageError: `model` is a word that names no model, or there is no such device.
            StorageError: there is no model, or it does not match its checksums.
        """
        chosen = _find_device(device)
        name, uri = locate_model(model)
        storage.check_access(uri)
        if is_hub_model(uri):
            return cls._load_hub_model(name, uri, threshold, low_memory, tta, chosen)
        if is_ensemble(uri):
            ensemble = read_ensemble(uri)
            checkpoints = ensemble.checkpoints(uri)
            best, labels = ensemble.thresholds, ensemble.labels
        else:
            checkpoint = find_checkpoint(uri)
            checkpoints, best, labels = [checkpoint], checkpoint.thresholds, checkpoint.labels
            uri = name = checkpoint.uri
        members = [Member.from_checkpoint(found, not low_memory, tta) for found in checkpoints]
        _check_classes(name, members, labels)
        return cls(
            [
                replace(member, name=member.name.replace(uri, name, 1), device=chosen)
                for member in members
            ],
            checkpoints[0].frame_size,
            best if threshold is None else threshold,
            name,
            labels,
        )

    @classmethod
    def _load_hub_model(
        cls,
        name: str,
        uri: str,
        threshold: float | None,
        low_memory: bool,
        tta: bool | None,
        device: torch.device | None,
    ) -> Predictor:
        model = read_hub_model(uri)
        members = []
        for number, entry in enumerate(model.members, 1):
            read: Callable[[], Segmentor] = functools.partial(
                read_hub_segmentor, uri, model, number
            )
            if not low_memory:
                read = functools.cache(read)
                read()
            config = entry.parse_config()
            if tta is not None:
                config = config.with_overrides({"evaluation.tta": tta})
            sha256 = entry.sha256 or f"{model.weights.sha256}/{number}"
            members.append(
                Member(read, config, entry.thresholds, f"{name}/{number}", sha256, device)
            )
        _check_classes(name, members, model.labels)
        best = model.thresholds if threshold is None else threshold
        frame_size = model.frame["width"], model.frame["height"]
        return cls(members, frame_size, best, name, model.labels)

    @overload
    def predict(self, images: list[ImageSource] | tuple[ImageSource, ...]) -> list[Prediction]: ...

    @overload
    def predict(self, images: ImageSource) -> Prediction: ...

    def predict(self, images: ImageSource | Sequence[ImageSource]) -> Prediction | list[Prediction]:
        """Segments an image of any size, or several; each map is resized bilinearly to that size.

        Args:
            images: one, or a list or tuple of them; each is a path or s3:// URI, a file's content,
                a Pillow image, or an array with channels last: uint8, uint16, or floats in [0, 1].
                Masks are those of the upright image, by its EXIF orientation.

        Raises:
            UsageError, RejectedError: it is not an image that can be used.
            StorageError: it cannot be read.
        """
        if isinstance(images, list | tuple):
            return [self(image) for image in images]
        return self(cast(ImageSource, images))

    def __call__(self, image: ImageSource) -> Prediction:
        """Segments one image, see `predict`."""
        upright = to_image(image)
        maps = self.predict_proba(self.preprocess(upright)[None])[0]
        return self.postprocess(maps, upright.size)

    def predict_members(self, source: ImageSource) -> Iterator[Prediction]:
        """Each member's prediction at its own threshold, then the prediction of the model.

        Args:
            source: an image, see `predict`.
        """
        image = to_image(source)
        maps = self.predict_proba(self.preprocess(image)[None])[0]
        yield from self.postprocess_members(maps, image.size)
        yield self.postprocess(maps, image.size)

    def preprocess(self, image: Image.Image) -> Tensor:
        """The image in RGB as a frame of the model, uint8 [H, W, 3]."""
        return torch.from_numpy(resize_to_frame(image, self.frame_size))

    def predict_proba(self, frames: Tensor) -> Tensor:
        """The members' probability maps; independent of the batch, except for rounding.

        Args:
            frames: uint8 [B, H, W, 3].

        Returns:
            float32 [B, members, classes, H, W] in [0, 1], on the CPU.
        """
        return torch.stack([member(frames) for member in self.members], dim=1).cpu()

    def postprocess(
        self,
        maps: Tensor,
        size: tuple[int, int],
        thresholds: float | Sequence[float] | None = None,
    ) -> Prediction:
        """The prediction for an image from its members' maps.

        Args:
            maps: float32 [members, classes, H, W], one item of `predict_proba`.
            size: (width, height) of the image in pixels.
            thresholds: of each class, or one for all; None for the model's.
        """
        probability = resize_maps(mean_map(maps), size)
        chosen = self.thresholds if thresholds is None else thresholds
        mask = above_thresholds(probability, _per_class(chosen, len(self.class_names)))
        if len(self.class_names) == 1:
            return Prediction(probability[0], mask[0], self.class_names)
        return Prediction(probability, mask, self.class_names)

    def postprocess_members(self, maps: Tensor, size: tuple[int, int]) -> Iterator[Prediction]:
        """Each member's prediction at its own threshold, from the members' maps."""
        for member, member_map in zip(self.members, maps, strict=True):
            yield self.postprocess(member_map[None], size, member.thresholds)


def _find_device(device: str | torch.device | None) -> torch.device | None:
    """The device of a name; raises UsageError if there is none of that name here."""
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # of another build of torch, or of the driver
        reason = str(error).splitlines()[0]
        raise UsageError(f"device {device}: expected one such as cpu or cuda ({reason})") from None
    return found


def _check_classes(name: str, members: Sequence[Member], labels: Sequence[str]) -> None:
    """Raises CorruptedError unless every member's network has a map for each class."""
    for member in members:
        if member.config.network.classes != len(labels):
            raise CorruptedError(
                f"{name}: {len(labels)} classes ({shorten(', '.join(labels), 200)}), but the "
                f"network of {member.name} has {member.config.network.classes}"
            )


def _per_class(thresholds: float | Sequence[float], classes: int) -> tuple[float, ...]:
    return tuple(thresholds) if isinstance(thresholds, Sequence) else (thresholds,) * classes


def resize_maps(values: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Maps of a frame, float32 [C, h, w], resized bilinearly to an image's (width, height)."""
    width, height = size
    # One by one: kernels for several channels round differently, and a class alone is the same map.
    full = [
        F.interpolate(one[None, None], (height, width), mode="bilinear", align_corners=False)
        for one in values
    ]
    return torch.cat(full)[:, 0].numpy() if len(full) > 1 else full[0][0].numpy()

"""A few validation frames with the outlines of their masks, for TensorBoard's *Images*.

    <run>/tensorboard/images/events.out.tfevents.<samples>

Each validation is a file of its own, so that it is uploaded once: the file of the scalars is
uploaded at every flush. A resumed run that repeats a validation replaces its file.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from segan import storage
from segan.data.records.format import Samples
from segan.runs.run import Run
from segan.utils.outline import outline_mask

NUM_FRAMES = 4
MAX_IMAGES = 20  # of several classes, each of which has an image of its own
MAX_SIDE = 320  # pixels; with NUM_FRAMES and QUALITY it bounds a validation's bytes
QUALITY = 85
TRUTH_COLOR, MODEL_COLOR = (0, 200, 83), (255, 109, 0)  # green and orange


class ImageLog:
    """Keeps the maps of the chosen frames of a validation, and writes them as images.

    The frames are evenly spaced over rank 0's share of the validation frames, so they are the same
    at every validation of a run with as many workers.
    """

    def __init__(self, run: Run, frames: Samples):
        """
        Args:
            frames: the validation frames of this rank.
        """
        self.run, self.frames = run, frames
        most = max(1, min(NUM_FRAMES, MAX_IMAGES // frames.mask.shape[1]))
        count = min(most, len(frames.ids))
        self.rows = [round(i * len(frames.ids) / count) for i in range(count)]
        self._maps: dict[int, np.ndarray] = {}

    def keep(self, start: int, probability: Tensor) -> None:
        """Keeps the maps of chosen frames, of a batch [B, classes, H, W] from row `start`."""
        for row in self.rows:
            if start <= row < start + len(probability):
                self._maps[row] = probability[row - start].cpu().numpy()

    def write(self, samples: int, thresholds: Sequence[float], labels: Sequence[str]) -> None:
        """Writes the kept frames to storage.

        Args:
            samples: images seen at this validation, TensorBoard's step.
            thresholds: of each class's mask.
            labels: names of the classes, in the tags of the images if there are several.
        """
        # Imported by the one process that writes, not by every other rank.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        values = []
        for row, maps in sorted(self._maps.items()):
            for label, threshold, truth, probability in zip(
                labels[:MAX_IMAGES], thresholds, self.frames.mask[row], maps, strict=False
            ):
                image = draw_outlines(self.frames.image[row], truth != 0, probability > threshold)
                tag = f"validation/{self.frames.ids[row]}"
                tag = f"{tag}/{label}" if len(labels) > 1 else tag
                values.append(Summary.Value(tag=tag, image=_to_summary(image)))
        self._maps.clear()
        sink, now = io.BytesIO(), time.time()
        writer = RecordWriter(sink)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        event = Event(wall_time=now, step=samples, summary=Summary(value=values))
        writer.write(event.SerializeToString())
        name = f"events.out.tfevents.{samples:012d}"  # TensorBoard reads files in order of names
        uri = storage.join(self.run.uri, "tensorboard", "images", name)
        self.run.fence()
        storage.write_bytes(uri, sink.getvalue())


def _to_summary(image: np.ndarray) -> Any:
    """An image, uint8 [H, W, 3], as a Summary.Image with a JPEG."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY)
    height, width, channels = image.shape
    return Summary.Image(
        height=height,
        width=width,
        colorspace=channels,
        encoded_image_string=buffer.getvalue(),
    )


def draw_outlines(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """The frame, at most MAX_SIDE pixels wide and high, with both masks' outlines.

    Args:
        image: uint8 [H, W, 3].
        truth, prediction: bool [H, W].

    Returns:
        uint8 [H, W, 3], with H and W of the smaller size.
    """
    height, width = truth.shape
    scale = min(1.0, MAX_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    for mask, color in ((truth, TRUTH_COLOR), (prediction, MODEL_COLOR)):
        small = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        drawn[outline_mask(small)] = color
    return drawn

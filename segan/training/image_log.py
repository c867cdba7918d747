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

    def __init__(self, run: Run, num_frames: int, num_classes: int = 1):
        """
        Args:
            num_frames: validation frames of this rank.
            num_classes: of the masks.
        """
        self.run = run
        count = min(NUM_FRAMES, MAX_IMAGES // num_classes or 1, num_frames)
        self.rows = [round(i * num_frames / count) for i in range(count)]
        self._next_row = 0
        self._kept: list[tuple[Samples, np.ndarray]] = []  # each with one frame, and its maps

    def keep(self, samples: Samples, probability: Tensor) -> None:
        """Keeps the chosen ones of the next frames, and their maps [B, classes, H, W]."""
        for row in self.rows:
            if 0 <= (at := row - self._next_row) < len(samples.ids):
                image, mask = (array[at : at + 1].copy() for array in (samples.image, samples.mask))
                frame = Samples(samples.ids[at : at + 1], image, mask)
                self._kept.append((frame, probability[at].cpu().numpy()))
        self._next_row += len(samples.ids)

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
        for frame, maps in self._kept:
            for label, threshold, truth, probability in zip(
                labels[:MAX_IMAGES], thresholds, frame.mask[0], maps, strict=False
            ):
                image = draw_outlines(frame.image[0], truth != 0, probability > threshold)
                tag = f"validation/{frame.ids[0]}"
                tag = f"{tag}/{label}" if len(labels) > 1 else tag
                values.append(Summary.Value(tag=tag, image=_to_summary(image)))
        self._kept.clear()
        self._next_row = 0
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

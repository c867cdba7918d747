"""Masks of many images in the challenge's names, over the cluster.

ray job submit --working-dir . -- python -m ray_jobs.predict MODEL IMAGES OUT
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ray_jobs.batch.inference import map_images
from segan.inference.masks import MaskWriter
from segan.inference.pipeline import Row


def predict(
    images: Sequence[str],
    model: str,
    task: MaskWriter,
    threshold: float | None = None,
    tta: bool | None = None,
) -> Iterator[Row]:
    """What `segan.inference.masks.WriteMasks` gives for each image, in no order."""
    return map_images(task, images, model, threshold, tta)

"""Masks of many images in the challenge's names, over the cluster.

ray job submit --working-dir . -- python -m ray_jobs.predict MODEL IMAGES OUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from ray_jobs.each import each
from segan.inference.masks import WriteMasks
from segan.inference.pipeline import Row


def predict(
    images: Sequence[str],
    model: str,
    work: WriteMasks,
    threshold: float | None = None,
    flips: bool | None = None,
) -> Iterator[Row]:
    """What `segan.inference.masks.WriteMasks` gives for each image, in no order."""
    return each(work, images, model, threshold, flips)


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["predict", *sys.argv[1:]]))

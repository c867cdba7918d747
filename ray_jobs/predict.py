"""Masks of many images in the challenge's names, over the cluster.

ray job submit --working-dir . -- python -m ray_jobs.predict MODEL IMAGES OUT
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import Any

from ray_jobs.each import each
from segan.inference.masks import write_mask


def predict(
    images: list[str], model: str, out: str, threshold: float | None
) -> Iterator[dict[str, Any]]:
    """What `segan.inference.masks.write_mask` gives for each image, in no order."""
    return each(functools.partial(write_mask, out=out), images, model, threshold)


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["predict", *sys.argv[1:]]))

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
from segan.inference.predictor import Predictor


def predict(
    images: list[str], model: str, out: str, threshold: float | None
) -> Iterator[dict[str, Any]]:
    """What `segan.inference.masks.write_mask` gives for each image, in no order."""
    rows = [{"image": image} for image in images]
    return each(functools.partial(_write, out=out), rows, model, threshold)


def _write(predictor: Predictor, row: dict[str, Any], out: str) -> dict[str, Any]:
    return write_mask(predictor, row["image"], out)


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["predict", *sys.argv[1:]]))

"""Scores against an archive's own masks, at the original images' size, as the challenge does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segan.data.archive import Pair, read_image, read_mask
from segan.evaluation.metrics import NAMES, confusion
from segan.inference.predictor import Predictor


def score_pair(predictor: Predictor, pair: Pair) -> dict[str, Any]:
    """`id`, `accuracy`, `dice` and `jaccard` of one image.

    Raises:
        RejectedError: the image or its mask cannot be read; scores over a part would mislead.
    """
    assert pair.mask is not None, "a score needs the truth"
    image = read_image(pair.image)
    truth = read_mask(pair.mask, image.size) > 128
    scores = confusion(predictor(image).mask, truth).scores()
    return {"id": pair.id, **{name: float(scores[name]) for name in NAMES}}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each score over the images, and how many there were."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in NAMES}
    return {"images": len(rows), **means}

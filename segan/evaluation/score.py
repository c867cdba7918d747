"""Scores against an archive's own masks, at the original images' size, as the challenge does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segan.data.archive import Pair, read_image, read_mask
from segan.evaluation.metrics import NAMES, confusion
from segan.inference.predictor import Prediction, Predictor


def score_pair(predictor: Predictor, pair: Pair) -> dict[str, Any]:
    """`id`, `accuracy`, `dice` and `jaccard` of one image.

    Where the model has several members, `members` holds the same scores of each alone.

    Raises:
        RejectedError: the image or its mask cannot be read; scores over a part would mislead.
    """
    assert pair.mask is not None, "a score needs the truth"
    image = read_image(pair.image)
    truth = read_mask(pair.mask, image.size) > 128
    if len(predictor.members) == 1:
        return {"id": pair.id, **_scores(predictor(image), truth)}
    *members, whole = (_scores(prediction, truth) for prediction in predictor.compare(image))
    return {"id": pair.id, **whole, "members": members}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each score over the images, and how many there were; so for each member."""
    summary: dict[str, Any] = {"images": len(rows), **_means(rows)}
    if "members" in rows[0]:
        alone = zip(*(row["members"] for row in rows), strict=True)
        summary["members"] = [_means(member) for member in alone]
    return summary


def _scores(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    scores = confusion(prediction.mask, truth).scores()
    return {name: float(scores[name]) for name in NAMES}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in NAMES}

"""Scores against an archive's own masks, at the original images' size, as the challenge does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from segan.data.archive.images import RejectedError
from segan.data.archive.reader import Pair, read_image, read_mask
from segan.evaluation.metrics import SCORE_NAMES, confusion
from segan.inference.pipeline import ImageSize, Row
from segan.inference.predictor import Prediction, Predictor


class ScoreTask:
    """Work for `segan.inference.pipeline`: the scores of each pair.

    A row has `id`, `accuracy`, `dice` and `jaccard`; where the model has several members, `members`
    holds the same scores of each alone. A pair that cannot be read raises RejectedError: scores
    over a part would mislead.
    """

    def read(self, pair: Pair) -> Image.Image:
        return read_image(pair.image)

    def process(self, predictor: Predictor, pair: Pair, maps: Tensor, size: ImageSize) -> Row:
        assert pair.mask is not None, "a score needs the truth"
        truth = read_mask(pair.mask, size) > 128
        row = {"id": pair.id, **_scores(predictor.postprocess(maps, size), truth)}
        if len(predictor.members) > 1:
            member_predictions = predictor.postprocess_members(maps, size)
            row["members"] = [_scores(prediction, truth) for prediction in member_predictions]
        return row

    def on_error(self, pair: Pair, error: RejectedError) -> Row:
        raise error


def score_pair(predictor: Predictor, pair: Pair) -> Row:
    """The row of one pair, as of many; raises RejectedError where it cannot be read."""
    task = ScoreTask()
    image = task.read(pair)
    return task.process(
        predictor, pair, predictor.predict_proba(predictor.preprocess(image)[None])[0], image.size
    )


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each score over the images, and how many there were; so for each member."""
    summary: dict[str, Any] = {"images": len(rows), **_means(rows)}
    if "members" in rows[0]:
        rows_by_member = zip(*(row["members"] for row in rows), strict=True)
        summary["members"] = [_means(member) for member in rows_by_member]
    return summary


def _scores(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    scores = confusion(prediction.mask, truth).scores()
    return {name: float(scores[name]) for name in SCORE_NAMES}


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in SCORE_NAMES}

"""Scores against an archive's masks at the original image size, as the ISIC challenge scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from segan.data.archive.reader import Pair, read_image, read_mask
from segan.errors import RejectedError
from segan.evaluation.bootstrap import Interval, mean_interval, paired_interval
from segan.evaluation.boundary import hausdorff_distance_95
from segan.evaluation.metrics import SCORE_NAMES, confusion, threshold_jaccard
from segan.inference.pipeline import ImageSize, Row
from segan.inference.predictor import Prediction, Predictor
from segan.utils.text import escape_controls, to_cell

# All scores of an image: those of the challenge, and the distance of the boundaries in pixels.
IMAGE_SCORES = (*SCORE_NAMES, "sensitivity", "specificity", "thresholded_jaccard", "hd95")


class ScoreTask:
    """Image task of `segan.inference.pipeline` that scores each pair.

    A row has `id`, the IMAGE_SCORES, and for an ensemble `members`: the same scores of each member.
    A pair that cannot be read raises RejectedError, because a mean over the other pairs would be
    misleading.
    """

    def read(self, pair: Pair) -> Image.Image:
        return read_image(pair.image)

    def process(self, predictor: Predictor, pair: Pair, maps: Tensor, size: ImageSize) -> Row:
        assert pair.mask is not None, "a pair without a mask cannot be scored"
        truth = read_mask(pair.mask, size) > 128
        row = {"id": pair.id, **_scores(predictor.postprocess(maps, size), truth)}
        if len(predictor.members) > 1:
            member_predictions = predictor.postprocess_members(maps, size)
            row["members"] = [_scores(prediction, truth) for prediction in member_predictions]
        return row

    def on_error(self, pair: Pair, error: RejectedError) -> Row:
        raise error


def score_pair(predictor: Predictor, pair: Pair) -> Row:
    """The row of one pair, see ScoreTask; raises RejectedError if it cannot be read."""
    task = ScoreTask()
    image = task.read(pair)
    return task.process(
        predictor, pair, predictor.predict_proba(predictor.preprocess(image)[None])[0], image.size
    )


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Number of images and mean of each score; for an ensemble also `members`, each one's means.

    Args:
        rows: of ScoreTask, at least one.
    """
    summary: dict[str, Any] = {"num_images": len(rows), **_means(rows)}
    if "members" in rows[0]:
        rows_by_member = zip(*(row["members"] for row in rows), strict=True)
        summary["members"] = [_means(member) for member in rows_by_member]
    return summary


def score_intervals(rows: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Mean of each score over the rows of ScoreTask, with its bootstrap interval."""
    return {name: mean_interval(_column(rows, name)) for name in IMAGE_SCORES}


def compare_scores(
    rows: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]
) -> dict[str, Interval]:
    """Mean difference of each score of two models, `rows` minus `other`, paired by image.

    Args:
        rows, other: of ScoreTask, of the same images in the same order.
    """
    assert [row["id"] for row in rows] == [row["id"] for row in other], "rows of other images"
    return {n: paired_interval(_column(rows, n), _column(other, n)) for n in IMAGE_SCORES}


def to_csv(models: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> bytes:
    """A table with a row for each model and image, and the columns model, id and IMAGE_SCORES.

    Args:
        models: each one's name and its rows; names may be equal.
    """
    sink = io.StringIO()
    table = csv.writer(sink)
    table.writerow(["model", "id", *IMAGE_SCORES])
    for model, rows in models:
        for row in rows:
            names = (to_cell(escape_controls(str(name))) for name in (model, row["id"]))
            table.writerow([*names, *(row[name] for name in IMAGE_SCORES)])
    return sink.getvalue().encode()


def _scores(prediction: Prediction, truth: np.ndarray) -> dict[str, float]:
    counts = confusion(prediction.mask, truth)
    scores = counts.scores()
    return {
        **{name: float(scores[name]) for name in SCORE_NAMES},
        "sensitivity": float(counts.sensitivity()),
        "specificity": float(counts.specificity()),
        "thresholded_jaccard": float(threshold_jaccard(scores["jaccard"])),
        "hd95": hausdorff_distance_95(prediction.mask, truth),
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean(_column(rows, name))) for name in IMAGE_SCORES}


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]

"""Scores against an archive's masks at the original image size, as the ISIC challenge scores.

The mean scores of a single class are means over images. Of several classes they are those of the
pixels of all images together, see `segan.evaluation.sweep`, but for HD95; the mean is that over
the classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from segan.data.archive.label_classes import LabelClasses
from segan.data.archive.reader import Archive, Pair, read_image, read_masks
from segan.errors import RejectedError, UsageError
from segan.evaluation.bootstrap import (
    Interval,
    interval_of,
    mean_interval,
    paired_interval,
    resample_sums,
)
from segan.evaluation.boundary import hausdorff_distance_95
from segan.evaluation.metrics import SCORE_NAMES, confusion, pooled_scores, threshold_jaccard
from segan.inference.pipeline import ImageSize, Row
from segan.inference.predictor import Prediction, Predictor
from segan.utils.labels import LESION, MEAN
from segan.utils.text import escape_controls, to_cell

# All scores of an image: those of the challenge, and the distance of the boundaries in pixels.
IMAGE_SCORES = (*SCORE_NAMES, "sensitivity", "specificity", "thresholded_jaccard", "hd95")
# Of several classes; a thresholded Jaccard is that of an image.
CLASS_SCORES = (*SCORE_NAMES, "sensitivity", "specificity", "hd95")


@dataclass(frozen=True)
class ScoreTask:
    """Image task of `segan.inference.pipeline` that scores each pair.

    A row has `id`, the IMAGE_SCORES, and for an ensemble `members`: the same scores of each member.
    Of several classes it and each member have `classes` instead: by name, the IMAGE_SCORES of the
    class's mask and `pixels`, its counts in the order of `Confusion`. A pair that cannot be read
    raises RejectedError, because a mean over the other pairs would be misleading.

    Attributes:
        classes: of the archive.
    """

    classes: LabelClasses | None = None

    def read(self, pair: Pair) -> Image.Image:
        return read_image(pair.image)

    def process(self, predictor: Predictor, pair: Pair, maps: Tensor, size: ImageSize) -> Row:
        assert pair.mask_files, "a pair without a mask cannot be scored"
        truth = read_masks(pair, size, self.classes)
        if len(predictor.class_names) > 1:  # in the archive they may have another order
            assert self.classes is not None, "several classes are those of an archive's"
            truth = truth[[self.classes.names.index(name) for name in predictor.class_names]]
        row = {"id": pair.id, **_scores(predictor.postprocess(maps, size), truth)}
        if len(predictor.members) > 1:
            member_predictions = predictor.postprocess_members(maps, size)
            row["members"] = [_scores(prediction, truth) for prediction in member_predictions]
        return row

    def on_error(self, pair: Pair, error: RejectedError) -> Row:
        raise error


def check_classes(predictor: Predictor, archive: Archive) -> None:
    """Raises UsageError unless a model and an archive have the same classes, in any order."""
    expected, found = predictor.class_names, archive.class_names or (LESION,)
    if len(expected) == len(found) == 1:
        return
    if set(expected) != set(found):
        raise UsageError(
            f"{archive.uri}: has the masks of {', '.join(found)}, but {predictor.name} segments "
            f"{', '.join(expected)}; use a model of these classes, or describe others with "
            "--classes"
        )


def score_pair(predictor: Predictor, pair: Pair, classes: LabelClasses | None = None) -> Row:
    """The row of one pair, see ScoreTask; raises RejectedError if it cannot be read."""
    task = ScoreTask(classes)
    image = task.read(pair)
    return task.process(
        predictor, pair, predictor.predict_proba(predictor.preprocess(image)[None])[0], image.size
    )


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Number of images and each mean score; for an ensemble also `members`, each one's.

    Of several classes, also `classes`: the scores of each by its name.

    Args:
        rows: of ScoreTask, at least one.
    """
    summary: dict[str, Any] = {"num_images": len(rows), **_means(rows)}
    if "members" in rows[0]:
        rows_by_member = zip(*(row["members"] for row in rows), strict=True)
        summary["members"] = [_means(member) for member in rows_by_member]
    return summary


def score_intervals(rows: Sequence[dict[str, Any]]) -> dict[str, Interval]:
    """Each mean score over the rows of ScoreTask, with its bootstrap interval."""
    if "classes" in rows[0]:
        return class_intervals(rows)[MEAN]
    return {name: mean_interval(_column(rows, name)) for name in IMAGE_SCORES}


def class_intervals(
    rows: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]] | None = None
) -> dict[str, dict[str, Interval]]:
    """Each class's scores with their intervals by its name, and the means over classes by MEAN.

    Args:
        other: rows of another model on the same images: differences, paired by image.
    """
    names = [*rows[0]["classes"]]
    pixels = [_class_values(one, "pixels") for one in (rows, other) if one]
    distances = [_class_values(one, "hd95") for one in (rows, other) if one]
    # [images or resamples, models, classes, ...]: the images of both models are drawn together.
    counts, hd95 = np.stack(pixels, 1), np.stack(distances, 1)
    scores = pooled_scores(resample_sums(counts))
    scores["hd95"] = resample_sums(hd95) / len(rows)
    found: dict[str, dict[str, Interval]] = {}
    for score in CLASS_SCORES:
        values = scores[score]
        values = values[:, 0] - values[:, 1] if other else values[:, 0]
        columns = {MEAN: values.mean(1)} | dict(zip(names, values.T, strict=True))
        for name, column in columns.items():
            found.setdefault(name, {})[score] = interval_of(column)
    return found


def compare_scores(
    rows: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]
) -> dict[str, Interval]:
    """Mean difference of each score of two models, `rows` minus `other`, paired by image.

    Args:
        rows, other: of ScoreTask, of the same images in the same order.
    """
    assert [row["id"] for row in rows] == [row["id"] for row in other], "rows of other images"
    if "classes" in rows[0]:
        return class_intervals(rows, other)[MEAN]
    return {n: paired_interval(_column(rows, n), _column(other, n)) for n in IMAGE_SCORES}


def to_csv(models: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> bytes:
    """A table with a row for each model and image, and the columns model, id and IMAGE_SCORES.

    Of several classes it has a row for each model, image and class, and a column class.

    Args:
        models: each one's name and its rows; names may be equal.
    """
    sink = io.StringIO()
    table, has_classes = csv.writer(sink), "classes" in models[0][1][0]
    table.writerow(["model", "id", *(["class"] if has_classes else []), *IMAGE_SCORES])
    for model, rows in models:
        for row in rows:
            names = [to_cell(escape_controls(str(name))) for name in (model, row["id"])]
            for label, scores in row.get("classes", {"": row}).items():
                key = [*names, label] if has_classes else names
                table.writerow([*key, *(scores[name] for name in IMAGE_SCORES)])
    return sink.getvalue().encode()


def _scores(prediction: Prediction, truth: np.ndarray) -> dict[str, Any]:
    """The scores of a prediction against masks, bool [classes, H, W], in the model's order."""
    if len(prediction.class_names) == 1:
        scores = _mask_scores(prediction.mask, truth[0])
        del scores["pixels"]
        return scores
    predictions = prediction.by_class().items()
    return {
        "classes": {
            name: _mask_scores(one.mask, mask)
            for (name, one), mask in zip(predictions, truth, strict=True)
        }
    }


def _mask_scores(mask: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    counts = confusion(mask, truth)
    scores = counts.scores()
    return {
        **{name: float(scores[name]) for name in SCORE_NAMES},
        "sensitivity": float(counts.sensitivity()),
        "specificity": float(counts.specificity()),
        "thresholded_jaccard": float(threshold_jaccard(scores["jaccard"])),
        "hd95": hausdorff_distance_95(mask, truth),
        "pixels": counts.stack().tolist(),
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if "classes" not in rows[0]:
        return {name: float(np.mean(_column(rows, name))) for name in IMAGE_SCORES}
    scores = pooled_scores(_class_values(rows, "pixels").sum(0))
    scores["hd95"] = _class_values(rows, "hd95").mean(0)
    by_class = {
        label: {name: float(scores[name][i]) for name in CLASS_SCORES}
        for i, label in enumerate(rows[0]["classes"])
    }
    return {name: float(scores[name].mean()) for name in CLASS_SCORES} | {"classes": by_class}


def _class_values(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """A value of every image and class, [N, classes, ...]."""
    return np.array([[scores[key] for scores in row["classes"].values()] for row in rows])


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]

"""Tables of scores: of models on an archive, their differences, and those of each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segan.cli.console import print_table
from segan.utils.labels import MEAN

if TYPE_CHECKING:  # imports torch
    from segan.evaluation.bootstrap import Interval

_CLASS_COLUMNS = {  # heading: key of metrics.jsonl
    "accuracy": "class_accuracy",
    "dice": "class_dice",
    "jaccard": "class_jaccard",
    "threshold": "class_thresholds",
}


def show_classes(metrics: Mapping[str, Any]) -> None:
    """The scores of each of several classes among the metrics of a validation."""
    columns = [name for name in _CLASS_COLUMNS.values() if metrics.get(name)]
    if columns:
        print_table(
            f"by class, at epoch {metrics['epoch']}",
            ["class", *_CLASS_COLUMNS],
            [
                [label, *(metrics[name].get(label) for name in columns)]
                for label in metrics[columns[0]]
            ],
        )


def show_scores(detail: Mapping[str, Any]) -> None:
    """A model's mean scores on a split, with their intervals and the means of its members.

    Of several classes, also the scores of each.
    """
    members, classes = detail["members"], detail.get("classes", {})
    rows = [
        [
            name,
            detail[name],
            _format_bounds(interval),
            *(member[name] for member in members),
        ]
        for name, interval in detail["intervals"].items()
        if name != "classes"
    ]
    if not classes:
        rows.append(["threshold", detail["threshold"], "", *(m["threshold"] for m in members)])
    model = "ensemble" if members else "model"
    title = f"{detail['model']} on {detail['num_images']} images of {detail['split']}"
    print_table(
        f"{title}, mean over classes" if classes else title,
        ["", model, "95 % interval", *(f"member {i}" for i, _ in enumerate(members, 1))],
        rows,
    )
    if not classes:
        return
    print_table(  # narrow enough for a terminal; --json has all scores
        f"{title}, by class: of the pixels of all images together, hd95 the mean over images",
        ["class", "jaccard", "95 % interval", "dice", "hd95", "threshold"],
        [
            [
                label,
                scores["jaccard"],
                _format_bounds(detail["intervals"]["classes"][label]["jaccard"]),
                scores["dice"],
                f"{scores['hd95']:.1f}",
                f"{detail['thresholds'][label]:g}",
            ]
            for label, scores in classes.items()
        ],
    )


def _format_bounds(interval: Mapping[str, float]) -> str:
    return f"{interval['low']:.4f} to {interval['high']:.4f}"


def show_differences(
    first: str, second: str, differences: Mapping[str, Interval], label: str = ""
) -> None:
    """The mean differences of two models' scores, paired by image.

    Args:
        label: of a class, or MEAN; "" if there is one class.
    """
    rows = [
        [name, f"{difference.mean:+.4f}", f"{difference.low:+.4f} to {difference.high:+.4f}"]
        for name, difference in differences.items()
    ]
    title = f"{first} minus {second}, paired by image"
    if label:
        title += ", mean over classes" if label == MEAN else f", class {label}"
    print_table(title, ["", "mean", "95 % interval"], rows)

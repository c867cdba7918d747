"""The charts of a training and of a search, from metrics and trials alone.

Imports neither torch nor NumPy: the live page shows them where only the base is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from segan.report.search import SearchSummary
from segan.utils.html.charts import (
    Chart,
    ParallelCoordinates,
    Points,
    format_percent,
    line_chart,
    parallel_coordinates,
)

NUM_HIGHLIGHTED = 3  # trials of a study that are drawn in colour
_LOG_SCALE_LABELS = {
    "optimizer.learning_rate": "learning rate",
    "optimizer.weight_clip": "weight clip",
}
_PARAMETER_LABELS = {**_LOG_SCALE_LABELS, "logistic.final_k": "final k"}
# Caption, y label and curves (name: key of metrics.jsonl) of each training chart.
_TRAINING_CHARTS = (
    (
        "Multi-scale L1 loss, mean of each epoch: the critic maximises it, the segmentor "
        "minimises it.",
        "loss",
        {"critic": "critic_loss", "segmentor": "segmentor_loss"},
    ),
    (
        "Validation Jaccard, mean over images.",
        "Jaccard",
        {
            "at the best threshold": "jaccard",
            "at the configured threshold": "jaccard_at_config_threshold",
        },
    ),
    (
        "Saturated validation pixels (probability below 0.01 or above 0.99), where the segmentor "
        "hardly learns any more: as a fraction of all pixels and of the wrong ones.",
        "saturated",
        {"of all": "saturated_fraction", "of the wrong": "wrong_saturated_fraction"},
    ),
    (
        "Dice loss of the segmentor, logged even if it has no weight in the training loss.",
        "Dice loss",
        {"dice": "dice_loss"},
    ),
    (
        "Learning rates of the two optimisers.",
        "learning rate",
        {"segmentor": "learning_rate", "critic": "critic_learning_rate"},
    ),
    ("Steepness k of the logistic.", "k", {"k": "k"}),
    (
        "Fraction of each epoch that rank 0 waited for data.",
        "data wait",
        {"waiting": "data_wait_fraction"},
    ),
)

_FRACTION_LABELS = ("data wait", "saturated")

MetricRows = Sequence[Mapping[str, Any]]


def search_context(search: SearchSummary | None) -> dict[str, Any]:
    """What search.html.j2 needs."""
    return {
        "search": search,
        "search_chart": search_chart(search) if search else None,
        "rung_chart": rung_chart(search) if search else None,
        "parameter_labels": parameter_labels(search) if search else {},
        "num_highlighted": NUM_HIGHLIGHTED,
    }


def training_charts(rows_per_epoch: float, metrics: MetricRows) -> list[tuple[str, Chart]]:
    """(caption, chart over epochs) for each of _TRAINING_CHARTS that has logged values."""
    if not (metrics and rows_per_epoch):
        return []
    x_range = (0.0, max(row["samples"] for row in metrics) / rows_per_epoch)

    def points(key: str) -> Points:
        found = [row for row in metrics if row.get(key) is not None]
        # Means over epochs, where there are any, not mixed with those over a few steps.
        rows = [row for row in found if row["kind"] == "epoch"] or found
        return [(row["samples"] / rows_per_epoch, row[key]) for row in rows]

    charts = []
    for caption, label, keys in _TRAINING_CHARTS:
        curves = [(name, "ab"[i], points(key)) for i, (name, key) in enumerate(keys.items())]
        format_y = format_percent if label in _FRACTION_LABELS else None
        chart = line_chart(f"{label} over epochs", "epochs", curves, x_range, format_y=format_y)
        if chart:
            charts.append((caption, chart))
    return charts


def search_chart(search: SearchSummary) -> ParallelCoordinates | None:
    """Parallel coordinates of the validated trials, the best ones highlighted."""
    trials = [trial for trial in search.trials if trial.best_jaccards]
    keys = [key for key in _PARAMETER_LABELS if all(key in trial.parameters for trial in trials)]
    quantities = [
        (
            _PARAMETER_LABELS[key],
            [trial.parameters[key] for trial in trials],
            key in _LOG_SCALE_LABELS,
        )
        for key in keys
    ]
    quantities.append(("threshold", [trial.threshold or 0.0 for trial in trials], False))
    quantities.append(("Jaccard", [trial.jaccard for trial in trials], False))
    label = f"{len(trials)} trials by {', '.join(name for name, _, _ in quantities)}"
    names = [trial.name for trial in trials]
    return parallel_coordinates(label, quantities, _css_classes(len(trials)), names)


def parameter_labels(search: SearchSummary) -> dict[str, str]:
    """Labels of the configuration keys that any trial sets."""
    keys = dict.fromkeys(key for trial in search.trials for key in trial.parameters)
    known = [key for key in _PARAMETER_LABELS if key in keys]
    return {key: _PARAMETER_LABELS.get(key, key) for key in dict.fromkeys([*known, *keys])}


def rung_chart(search: SearchSummary) -> Chart | None:
    """Best Jaccard so far of each trial over epochs, with the rungs marked.

    None if no trial has a second epoch.
    """
    trials = [trial for trial in search.trials if trial.best_jaccards]
    last = max((trial.epochs for trial in trials), default=1)
    if last <= 1:
        return None
    css_classes = _css_classes(len(trials))
    curves = [
        (trial.name, css_class, trial.best_jaccards)
        for trial, css_class in zip(trials, css_classes, strict=True)
    ]
    marks = [(float(rung.epoch), str(rung.epoch)) for rung in search.rungs if rung.epoch <= last]
    label = "Best Jaccard so far of each trial over epochs"
    return line_chart(label, "epochs", curves[::-1], (1.0, float(last)), marks=marks)


def _css_classes(count: int) -> list[str]:
    return ["a"] * min(NUM_HIGHLIGHTED, count) + ["quiet"] * (count - NUM_HIGHLIGHTED)

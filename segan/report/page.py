"""The HTML page of a report: its charts and the template's other context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segan import storage
from segan.evaluation.result import EvaluationResult
from segan.evaluation.slices import MIN_IMAGES
from segan.inference.thresholds import THRESHOLDS
from segan.report.build import Report
from segan.report.cases import Case, CaseGroup
from segan.report.search import SearchSummary
from segan.utils.html import render
from segan.utils.html.charts import (
    Chart,
    ParallelCoordinates,
    Points,
    format_percent,
    histogram_chart,
    line_chart,
    parallel_coordinates,
)

NUM_HIGHLIGHTED = 3  # trials of a study that are drawn in colour
JACCARD_BINS = 20
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


def render_page(
    report: Report,
    metrics: MetricRows,
    case_groups: Sequence[CaseGroup],
    disagreement_cases: Sequence[Case],
) -> str:
    """The content of report.html.

    Args:
        metrics: the rows of the run's metrics.jsonl; empty for an ensemble.
        case_groups: of `segan.report.cases.build_cases`.
        disagreement_cases: of `segan.report.cases.build_disagreement_cases`.
    """
    result, search = report.result, report.search
    jaccards = [image.jaccard for image in result.images]
    counts = np.histogram(jaccards, JACCARD_BINS, (0, 1))[0].tolist()
    return render(
        "segan/report/page.html.j2",
        report=report,
        name=storage.basename(report.uri),
        min_images=MIN_IMAGES,
        case_groups=case_groups,
        disagreement_cases=disagreement_cases,
        training_charts=training_charts(report.splits.get(report.train_split, 0), metrics),
        threshold_chart=threshold_chart(result),
        jaccard_chart=histogram_chart("Histogram of the Jaccard per image", "Jaccard", counts),
        jaccard_quantiles=np.quantile(jaccards, (0.1, 0.25, 0.5, 0.75)).tolist(),
        calibration_chart=calibration_chart(result),
        probability_chart=histogram_chart(
            "Histogram of the probability per pixel", "probability", result.calibration.pixels
        ),
        disagreement_chart=disagreement_chart(result),
        disagreement_quartiles=disagreement_quartiles(result),
        **search_context(search),
    )


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


def threshold_chart(result: EvaluationResult) -> Chart | None:
    """Mean scores at each threshold, with the model's own threshold marked."""
    curves = [
        (label, css_class, list(zip(THRESHOLDS, result.threshold_curves[name], strict=True)))
        for label, css_class, name in (
            ("Jaccard", "a", "jaccard"),
            ("Dice", "b", "dice"),
            ("accuracy", "c", "accuracy"),
        )
    ]
    label = "Jaccard, Dice and accuracy at each threshold"
    marks = [(result.threshold, f"{result.threshold:g}")]
    return line_chart(label, "threshold", curves, (0, 1), marks=marks)


def calibration_chart(result: EvaluationResult) -> Chart | None:
    """Lesion fraction against mean probability of each bin, beside the diagonal."""
    calibration = result.calibration
    bins = zip(calibration.probability, calibration.lesion_fraction, strict=True)
    points = [(p, fraction) for p, fraction in bins if p is not None and fraction is not None]
    curves = [("perfect calibration", "even", [(0.0, 0.0), (1.0, 1.0)]), ("model", "a", points)]
    label = "Fraction of lesion pixels against mean probability"
    return line_chart(label, "mean probability", curves, (0, 1), (0, 1), dots=True)


def disagreement_chart(result: EvaluationResult) -> Chart | None:
    """A dot per image: Jaccard against disagreement; None for a single model."""
    if not result.members:
        return None
    points = [(image.disagreement or 0.0, image.jaccard) for image in result.images]
    return line_chart(
        "Jaccard of each image against the disagreement of the members",
        "disagreement",
        [("images", "scatter", points)],
        y_range=(0, 1),
        dots=True,
        max_points=len(points),
    )


def disagreement_quartiles(result: EvaluationResult) -> list[tuple[float, float]]:
    """(mean disagreement, mean Jaccard) of each quarter of the images by rising disagreement."""
    if not result.members or len(result.images) < 4:
        return []
    images = sorted(result.images, key=lambda image: image.disagreement or 0.0)
    disagreement = np.array_split([image.disagreement or 0.0 for image in images], 4)
    jaccard = np.array_split([image.jaccard for image in images], 4)
    pairs = zip(disagreement, jaccard, strict=True)
    return [(float(np.mean(d)), float(np.mean(j))) for d, j in pairs]


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

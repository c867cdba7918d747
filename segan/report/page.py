"""A report as a page: its charts, and what the template needs beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segan import storage
from segan.evaluation.result import EvaluationResult
from segan.inference.thresholds import THRESHOLDS
from segan.report.build import Report
from segan.report.cases import Case, CaseGroup
from segan.report.charts import (
    Chart,
    ParallelCoordinates,
    format_percent,
    histogram_chart,
    line_chart,
    parallel_coordinates,
)
from segan.report.search import SearchSummary
from segan.utils.html import render

NUM_HIGHLIGHTED = 3  # trials of a study that are drawn in colour
JACCARD_BINS = 20
_LOG_SCALE_LABELS = {"optimizer.learning_rate": "learning rate", "optimizer.weight_clip": "clamp"}
_PARAMETER_LABELS = {**_LOG_SCALE_LABELS, "logistic.final_k": "final k"}

MetricRows = Sequence[Mapping[str, Any]]


def render_page(
    report: Report,
    metrics: MetricRows,
    case_groups: Sequence[CaseGroup],
    disagreement_cases: Sequence[Case],
) -> str:
    """The HTML of a report.

    Args:
        metrics: the lines of the run's metrics.jsonl; none of an ensemble.
        groups: of `segan.report.cases.build_cases`.
        disputed: of `segan.report.cases.build_disagreement_cases`.
    """
    result = report.result
    jaccards = [image.jaccard for image in result.images]
    counts = np.histogram(jaccards, JACCARD_BINS, (0, 1))[0].tolist()
    return render(
        "segan/report/page.html.j2",
        report=report,
        found=result,
        name=storage.basename(report.uri),
        groups=case_groups,
        disputed=disagreement_cases,
        training=training_charts(report, metrics),
        thresholds=threshold_chart(result),
        jaccards=histogram_chart("Jaccard of each image, a histogram", "Jaccard", counts),
        quantiles=np.quantile(jaccards, (0.1, 0.25, 0.5, 0.75)).tolist(),
        calibration=calibration_chart(result),
        probabilities=histogram_chart(
            "probability of each pixel, a histogram", "probability", result.calibration.pixels
        ),
        apart=disagreement_chart(result),
        quarters=disagreement_quartiles(result),
        coordinates=search_chart(report.search) if report.search else None,
        rungs=rung_chart(report.search) if report.search else None,
        parameters=parameter_labels(report.search) if report.search else {},
        best_trials=NUM_HIGHLIGHTED,
    )


def training_charts(report: Report, metrics: MetricRows) -> list[tuple[str, Chart]]:
    """A chart and its caption for each thing that a training logs, where it was logged."""
    rows = report.splits.get(report.trained_on, 0)
    if not (metrics and rows):
        return []
    x_range = (0.0, max(line["samples"] for line in metrics) / rows)

    def of(key: str) -> list[tuple[float, float]]:
        return [
            (line["samples"] / rows, line[key]) for line in metrics if line.get(key) is not None
        ]

    def over_epochs(what: str, **curves: str) -> Chart | None:
        kinds = zip(("a", "b", "c"), curves.items(), strict=False)
        drawn = [(name.replace("_", " "), kind, of(key)) for kind, (name, key) in kinds]
        y_text = format_percent if "wait_share" in curves.values() else None
        return line_chart(f"{what} over epochs", "epochs", drawn, x_range, format_y=y_text)

    charts = [
        (
            "Multi-scale L1 loss: the critic raises it, the segmentor lowers it.",
            over_epochs("loss", critic="critic_loss", segmentor="segmentor_loss"),
        ),
        (
            "Jaccard on validation, mean over images.",
            over_epochs(
                "Jaccard",
                at_the_best_threshold="jaccard",
                at_the_configured_threshold="jaccard_at_config_threshold",
            ),
        ),
        (
            "Dice loss of the segmentor's maps, logged beside the loss that it learns from.",
            over_epochs("Dice loss", dice="dice_loss"),
        ),
        ("Learning rate of both optimisers.", over_epochs("learning rate", rate="learning_rate")),
        ("Steepness k of the logistic.", over_epochs("k", k="k")),
        (
            "Share of an epoch's time that rank 0 waited for images.",
            over_epochs("wait share", waiting="wait_share"),
        ),
    ]
    return [(caption, drawn) for caption, drawn in charts if drawn]


def threshold_chart(result: EvaluationResult) -> Chart | None:
    kinds = {"jaccard": "a", "dice": "b", "accuracy": "c"}
    curves = [
        (name.capitalize() if name != "accuracy" else name, kind, _threshold_points(result, name))
        for name, kind in kinds.items()
    ]
    marks = [(result.threshold, f"{result.threshold:g}")]
    label = "Jaccard, Dice and accuracy at each threshold"
    return line_chart(label, "threshold", curves, (0, 1), marks=marks)


def _threshold_points(result: EvaluationResult, name: str) -> list[tuple[float, float]]:
    return list(zip(THRESHOLDS.tolist(), result.threshold_curves[name], strict=True))


def calibration_chart(result: EvaluationResult) -> Chart | None:
    calibration = result.calibration
    pairs = zip(calibration.probability, calibration.lesion_fraction, strict=True)
    points = [(p, share) for p, share in pairs if p is not None and share is not None]
    curves = [("equal", "even", [(0.0, 0.0), (1.0, 1.0)]), ("model", "a", points)]
    label = "share of pixels that are lesion, over their mean probability"
    return line_chart(label, "mean probability", curves, (0, 1), (0, 1), dots=True)


def disagreement_chart(result: EvaluationResult) -> Chart | None:
    if not result.members:
        return None
    points = [(image.disagreement or 0.0, image.jaccard) for image in result.images]
    max_points = len(points)
    label = "Jaccard of each image over the disagreement of the members"
    curves = [("images", "scatter", points)]
    return line_chart(
        label, "disagreement", curves, y_range=(0, 1), dots=True, max_points=max_points
    )


def disagreement_quartiles(result: EvaluationResult) -> list[tuple[float, float]]:
    """Mean disagreement and mean Jaccard of each quarter of the images, the most agreed first."""
    if not result.members or len(result.images) < 4:
        return []
    order = sorted(result.images, key=lambda image: image.disagreement or 0.0)
    quarters = [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), 4)]
    return [
        (
            float(np.mean([image.disagreement for image in quarter])),
            float(np.mean([image.jaccard for image in quarter])),
        )
        for quarter in quarters
    ]


def search_chart(search: SearchSummary) -> ParallelCoordinates | None:
    """Parallel coordinates of the trials that were validated, the best in colour."""
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
    """The keys that any trial sets, with their names."""
    keys = dict.fromkeys(key for trial in search.trials for key in trial.parameters)
    known = [key for key in _PARAMETER_LABELS if key in keys]
    return {key: _PARAMETER_LABELS.get(key, key) for key in dict.fromkeys([*known, *keys])}


def rung_chart(search: SearchSummary) -> Chart | None:
    """Each trial's best Jaccard so far over epochs, a line up at each rung."""
    trials = [trial for trial in search.trials if trial.best_jaccards]
    curves = [
        (trial.name, kind, trial.best_jaccards)
        for trial, kind in zip(trials, _css_classes(len(trials)), strict=True)
    ]
    x_range = (1.0, float(max((trial.epochs for trial in trials), default=1)))
    marks = [
        (float(rung.epoch), str(rung.epoch)) for rung in search.rungs if rung.epoch <= x_range[1]
    ]
    drawn = line_chart(
        "best Jaccard of each trial over epochs", "epochs", curves[::-1], x_range, marks=marks
    )
    return drawn if x_range[1] > 1 else None


def _css_classes(count: int) -> list[str]:
    return ["a"] * min(NUM_HIGHLIGHTED, count) + ["quiet"] * (count - NUM_HIGHLIGHTED)

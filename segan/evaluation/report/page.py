"""A report as a page: its charts, and what the template needs beside the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segan import storage
from segan.evaluation.report.cases import Case, Group
from segan.evaluation.report.charts import Chart, Parallel, chart, histogram, parallel, percent
from segan.evaluation.report.findings import Findings
from segan.evaluation.report.gather import Report
from segan.evaluation.report.rungs import Search
from segan.evaluation.sweep import THRESHOLDS
from segan.pages import render

BEST = 3  # trials of a study that are drawn in colour
JACCARD_BINS = 20
_HELD = {"optimizer.learning_rate": "learning rate", "optimizer.clamp": "clamp"}
_NAMES = {**_HELD, "logistic.final_k": "final k"}

Lines = Sequence[Mapping[str, Any]]


def draw_page(
    report: Report, metrics: Lines, groups: Sequence[Group], disputed: Sequence[Case]
) -> str:
    """The HTML of a report.

    Args:
        metrics: the lines of the run's metrics.jsonl; none of an ensemble.
        groups: of `segan.evaluation.report.cases.draw_cases`.
        disputed: of `segan.evaluation.report.cases.draw_disputed`.
    """
    findings = report.findings
    jaccards = [image.jaccard for image in findings.images]
    counts = np.histogram(jaccards, JACCARD_BINS, (0, 1))[0].tolist()
    return render(
        "evaluation/report/page.html.j2",
        report=report,
        found=findings,
        name=storage.basename(report.uri),
        groups=groups,
        disputed=disputed,
        training=training_charts(report, metrics),
        thresholds=threshold_chart(findings),
        jaccards=histogram("Jaccard of each image, a histogram", "Jaccard", counts),
        quantiles=np.quantile(jaccards, (0.1, 0.25, 0.5, 0.75)).tolist(),
        calibration=calibration_chart(findings),
        probabilities=histogram(
            "probability of each pixel, a histogram", "probability", findings.calibration.pixels
        ),
        apart=disagreement_chart(findings),
        quarters=disagreement_quarters(findings),
        coordinates=search_chart(report.search) if report.search else None,
        rungs=rung_chart(report.search) if report.search else None,
        parameters=parameters(report.search) if report.search else {},
        best_trials=BEST,
    )


def training_charts(report: Report, metrics: Lines) -> list[tuple[str, Chart]]:
    """A chart and its caption for each thing that a training logs, where it was logged."""
    rows = report.splits.get(report.trained_on, 0)
    if not (metrics and rows):
        return []
    ends = (0.0, max(line["samples"] for line in metrics) / rows)

    def of(key: str) -> list[tuple[float, float]]:
        return [
            (line["samples"] / rows, line[key]) for line in metrics if line.get(key) is not None
        ]

    def over_epochs(what: str, **curves: str) -> Chart | None:
        kinds = zip(("a", "b", "c"), curves.items(), strict=False)
        drawn = [(name.replace("_", " "), kind, of(key)) for kind, (name, key) in kinds]
        y_text = percent if "wait_share" in curves.values() else None
        return chart(f"{what} over epochs", "epochs", drawn, ends, y_text=y_text)

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


def threshold_chart(findings: Findings) -> Chart | None:
    kinds = {"jaccard": "a", "dice": "b", "accuracy": "c"}
    curves = [
        (name.capitalize() if name != "accuracy" else name, kind, _over_thresholds(findings, name))
        for name, kind in kinds.items()
    ]
    marks = [(findings.threshold, f"{findings.threshold:g}")]
    label = "Jaccard, Dice and accuracy at each threshold"
    return chart(label, "threshold", curves, (0, 1), marks=marks)


def _over_thresholds(findings: Findings, name: str) -> list[tuple[float, float]]:
    return list(zip(THRESHOLDS.tolist(), findings.curves[name], strict=True))


def calibration_chart(findings: Findings) -> Chart | None:
    found = findings.calibration
    pairs = zip(found.probability, found.lesion, strict=True)
    points = [(p, share) for p, share in pairs if p is not None and share is not None]
    curves = [("equal", "even", [(0.0, 0.0), (1.0, 1.0)]), ("model", "a", points)]
    label = "share of pixels that are lesion, over their mean probability"
    return chart(label, "mean probability", curves, (0, 1), (0, 1), dots=True)


def disagreement_chart(findings: Findings) -> Chart | None:
    if not findings.members:
        return None
    points = [(image.disagreement or 0.0, image.jaccard) for image in findings.images]
    most = len(points)
    label = "Jaccard of each image over the disagreement of the members"
    curves = [("images", "scatter", points)]
    return chart(label, "disagreement", curves, y_range=(0, 1), dots=True, most=most)


def disagreement_quarters(findings: Findings) -> list[tuple[float, float]]:
    """Mean disagreement and mean Jaccard of each quarter of the images, the most agreed first."""
    if not findings.members or len(findings.images) < 4:
        return []
    order = sorted(findings.images, key=lambda image: image.disagreement or 0.0)
    quarters = [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), 4)]
    return [
        (
            float(np.mean([image.disagreement for image in quarter])),
            float(np.mean([image.jaccard for image in quarter])),
        )
        for quarter in quarters
    ]


def search_chart(search: Search) -> Parallel | None:
    """Parallel coordinates of the trials that were validated, the best in colour."""
    trials = [trial for trial in search.trials if trial.jaccards]
    keys = [key for key in _NAMES if all(key in trial.parameters for trial in trials)]
    quantities = [
        (_NAMES[key], [trial.parameters[key] for trial in trials], key in _HELD) for key in keys
    ]
    quantities.append(("threshold", [trial.threshold or 0.0 for trial in trials], False))
    quantities.append(("Jaccard", [trial.jaccard for trial in trials], False))
    label = f"{len(trials)} trials by {', '.join(name for name, _, _ in quantities)}"
    names = [trial.name for trial in trials]
    return parallel(label, quantities, _kinds(len(trials)), names)


def parameters(search: Search) -> dict[str, str]:
    """The keys that any trial sets, with their names."""
    keys = dict.fromkeys(key for trial in search.trials for key in trial.parameters)
    known = [key for key in _NAMES if key in keys]
    return {key: _NAMES.get(key, key) for key in dict.fromkeys([*known, *keys])}


def rung_chart(search: Search) -> Chart | None:
    """Each trial's best Jaccard so far over epochs, a line up at each rung."""
    trials = [trial for trial in search.trials if trial.jaccards]
    curves = [
        (trial.name, kind, trial.jaccards)
        for trial, kind in zip(trials, _kinds(len(trials)), strict=True)
    ]
    ends = (1.0, float(max((trial.epochs for trial in trials), default=1)))
    marks = [(float(rung.epoch), str(rung.epoch)) for rung in search.rungs if rung.epoch <= ends[1]]
    drawn = chart(
        "best Jaccard of each trial over epochs", "epochs", curves[::-1], ends, marks=marks
    )
    return drawn if ends[1] > 1 else None


def _kinds(count: int) -> list[str]:
    return ["a"] * min(BEST, count) + ["quiet"] * (count - BEST)

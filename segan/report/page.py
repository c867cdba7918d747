"""The HTML page of a report: its charts and the template's other context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from segan import storage
from segan.evaluation.result import EvaluationResult
from segan.evaluation.slices import MIN_IMAGES
from segan.inference.thresholds import THRESHOLDS
from segan.report.build import Report
from segan.report.cases import Case, CaseGroup
from segan.report.training_charts import MetricRows, search_context, training_charts
from segan.utils.html import render
from segan.utils.html.charts import Chart, histogram_chart, line_chart
from segan.utils.labels import css_colour

JACCARD_BINS = 20


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
        class_chart=class_chart(result),
        class_colours=[css_colour(i) for i in range(len(result.classes))],
        jaccard_chart=histogram_chart("Histogram of the Jaccard per image", "Jaccard", counts),
        image_mean=float(np.mean(jaccards)),
        jaccard_quantiles=np.quantile(jaccards, (0.1, 0.25, 0.5, 0.75)).tolist(),
        calibration_chart=calibration_chart(result),
        probability_chart=histogram_chart(
            "Histogram of the probability per pixel", "probability", result.calibration.pixels
        ),
        disagreement_chart=disagreement_chart(result),
        disagreement_quartiles=disagreement_quartiles(result),
        **search_context(search),
    )


def threshold_chart(result: EvaluationResult) -> Chart | None:
    """Mean scores at each threshold, with the model's own threshold marked if it has one."""
    curves = [
        (label, css_class, list(zip(THRESHOLDS, result.threshold_curves[name], strict=True)))
        for label, css_class, name in (
            ("Jaccard", "a", "jaccard"),
            ("Dice", "b", "dice"),
            ("accuracy", "c", "accuracy"),
        )
    ]
    label = "Jaccard, Dice and accuracy at each threshold"
    marks = [] if result.classes else [(result.threshold, f"{result.threshold:g}")]
    return line_chart(label, "threshold", curves, (0, 1), marks=marks)


def class_chart(result: EvaluationResult) -> Chart | None:
    """The Jaccard of each of several classes at each threshold; None for one class.

    More classes than lines can be told apart by are one kind of line; a table has their numbers.
    """
    if not result.classes:
        return None
    css = "abcde" if len(result.classes) <= 5 else ""
    curves = []
    for i, one in enumerate(result.classes):
        points = list(zip(THRESHOLDS, one.jaccard_curve, strict=True))
        curves.append((one.name, css[i] if css else "quiet", points))
    label = "Jaccard of each class at each threshold"
    return line_chart(label, "threshold", curves, (0, 1))


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

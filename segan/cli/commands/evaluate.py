"""The command that scores models against an archive's masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segan.cli.commands.options import (
    ArchiveArgument,
    ClassesOption,
    Debug,
    Json,
    Local,
    Threshold,
    Tta,
    advance_and_return,
    complete_model,
    join_cluster,
)
from segan.errors import UsageError
from segan.utils.labels import MEAN
from segan.utils.text import count_noun

if TYPE_CHECKING:
    from segan.data.archive.pairs import Pair
    from segan.evaluation.bootstrap import Interval
    from segan.evaluation.score import ScoreTask
    from segan.inference.predictor import Predictor

app = typer.Typer()


@app.command(epilog="segan evaluate s3://bucket/runs/first s3://bucket/isic2017 --split test")
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            autocompletion=complete_model,
            help="A model, or two to compare: names of models that ship with segan, or URIs of "
            "runs, checkpoints or ensembles.",
        ),
    ],
    archive: ArchiveArgument,
    classes: ClassesOption = "",
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    csv: Annotated[
        str, typer.Option(metavar="FILE", help="Also write the scores of each image to this file.")
    ] = "",
    threshold: Threshold = None,
    tta: Tta = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model against an archive's masks, at the original size of the images.

    With two models, also compares the first with the second, paired by image. The scores of several
    classes are those of the pixels of all images together, of each class and their mean.
    """
    from segan import storage
    from segan.cli.console import echo, print_json
    from segan.cli.score_tables import show_differences, show_scores
    from segan.data.archive.reader import open_archive
    from segan.evaluation.score import (
        ScoreTask,
        check_classes,
        class_intervals,
        compare_scores,
        to_csv,
    )
    from segan.inference.predictor import Predictor

    if len(models) > 2:
        raise UsageError(f"evaluate: expected one model or two to compare, found {len(models)}")
    opened = open_archive(storage.normalise(archive), classes)
    pairs, rejects = opened.split(split), opened.rejects_of(split)
    for row in rejects:
        echo(f"not scored: {row['name']}: {row['reason']}")
    predictors = [Predictor.load(model, threshold, tta=tta) for model in models]
    for predictor in predictors:
        check_classes(predictor, opened)
    if not local:
        join_cluster(debug)
    task = ScoreTask(opened.classes)
    rows = [_score(predictor, task, pairs, threshold, tta, local) for predictor in predictors]
    details = [
        _describe(predictor, scores, split, rejects)
        for predictor, scores in zip(predictors, rows, strict=True)
    ]
    if csv:
        names = [predictor.name for predictor in predictors]
        storage.write_bytes(storage.normalise(csv), to_csv([*zip(names, rows, strict=True)]))
    if rejects:
        echo(
            f"{len(rejects)} files of {split} or of no known split are not scored; the scores are "
            f"those of the other {count_noun(len(pairs), 'image')}"
        )
    differences = compare_scores(*rows) if len(rows) == 2 else None
    by_class = class_intervals(*rows) if differences and opened.class_names[1:] else {}
    if as_json:
        found: dict[str, Any] = {name: asdict(one) for name, one in (differences or {}).items()}
        if by_class:
            found["classes"] = {
                label: {name: asdict(interval) for name, interval in scores.items()}
                for label, scores in by_class.items()
                if label != MEAN
            }
        print_json({"models": details, "differences": found} if differences else details[0])
        return
    for detail in details:
        show_scores(detail)
    if differences:
        first, second = (predictor.name for predictor in predictors)
        for label, scores in (by_class or {"": differences}).items():
            show_differences(first, second, scores, label)


def _score(
    predictor: Predictor,
    task: ScoreTask,
    pairs: Sequence[Pair],
    threshold: float | None,
    tta: bool | None,
    local: bool,
) -> list[dict[str, Any]]:
    """The rows of a model, sorted by id."""
    from segan.cli.console import progress_bar
    from segan.inference.pipeline import run_image_task

    if local:
        results: Iterator[dict[str, Any]] = run_image_task(predictor, pairs, task)
    else:
        from ray_jobs.batch.inference import map_images

        results = map_images(task, pairs, predictor.name, threshold, tta)
    with progress_bar("scoring", len(pairs)) as advance:
        rows = [advance_and_return(row, advance) for row in results]
    return sorted(rows, key=lambda row: str(row["id"]))


def _describe(
    predictor: Predictor,
    rows: list[dict[str, Any]],
    split: str,
    rejects: list[dict[str, str]],
) -> dict[str, Any]:
    """A model's means, their intervals, its members' means, and the scores of each image."""
    from segan.evaluation.score import class_intervals, score_intervals, summarise

    summary, labels = summarise(rows), predictor.class_names
    member_scores = summary.pop("members", [])
    members = [
        {"model": member.name, **_thresholds(labels, member.thresholds), **scores}
        for member, scores in zip(
            predictor.members if member_scores else (), member_scores, strict=True
        )
    ]
    by_class = class_intervals(rows) if "classes" in summary else {MEAN: score_intervals(rows)}
    intervals: dict[str, Any] = _bounds(by_class.pop(MEAN))
    if by_class:
        intervals["classes"] = {label: _bounds(scores) for label, scores in by_class.items()}
    return summary | {
        **_thresholds(labels, predictor.thresholds),
        "split": split,
        "num_rejects": len(rejects),
        "model": predictor.name,
        "intervals": intervals,
        "members": members,
        "scores": rows,
        "rejects": rejects,
    }


def _bounds(scores: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: {"low": one.low, "high": one.high} for name, one in scores.items()}


def _thresholds(labels: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
    """The threshold, or those of several classes by their names."""
    if len(labels) == 1:
        return {"threshold": thresholds[0]}
    return {"thresholds": dict(zip(labels, thresholds, strict=True))}

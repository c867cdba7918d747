"""The command that scores models against an archive's masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segan.cli.commands.options import (
    ArchiveArgument,
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
from segan.utils.text import count_noun

if TYPE_CHECKING:
    from segan.data.archive.pairs import Pair
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

    With two models, also compares the first with the second, paired by image.
    """
    from segan import storage
    from segan.cli.console import echo, print_json
    from segan.cli.tables import show_differences, show_scores
    from segan.data.archive.reader import open_archive
    from segan.evaluation.score import compare_scores, to_csv
    from segan.inference.predictor import Predictor

    if len(models) > 2:
        raise UsageError(f"evaluate: expected one model or two to compare, found {len(models)}")
    opened = open_archive(storage.normalise(archive))
    pairs, rejects = opened.split(split), opened.rejects_of(split)
    for row in rejects:
        echo(f"not scored: {row['name']}: {row['reason']}")
    predictors = [Predictor.load(model, threshold, tta=tta) for model in models]
    if not local:
        join_cluster(debug)
    rows = [_score(predictor, pairs, threshold, tta, local) for predictor in predictors]
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
    if as_json:
        found = {name: asdict(interval) for name, interval in (differences or {}).items()}
        print_json({"models": details, "differences": found} if differences else details[0])
        return
    for detail in details:
        show_scores(detail)
    if differences:
        show_differences(predictors[0].name, predictors[1].name, differences)


def _score(
    predictor: Predictor,
    pairs: Sequence[Pair],
    threshold: float | None,
    tta: bool | None,
    local: bool,
) -> list[dict[str, Any]]:
    """The rows of a model, sorted by id."""
    from segan.cli.console import progress_bar
    from segan.evaluation.score import ScoreTask
    from segan.inference.pipeline import run_image_task

    if local:
        results: Iterator[dict[str, Any]] = run_image_task(predictor, pairs, ScoreTask())
    else:
        from ray_jobs.batch.inference import map_images

        results = map_images(ScoreTask(), pairs, predictor.name, threshold, tta)
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
    from segan.evaluation.score import score_intervals, summarise

    summary = summarise(rows)
    member_scores = summary.pop("members", [])
    members = [
        {"model": member.name, "threshold": member.threshold, **scores}
        for member, scores in zip(
            predictor.members if member_scores else (), member_scores, strict=True
        )
    ]
    intervals = {
        name: {"low": interval.low, "high": interval.high}
        for name, interval in score_intervals(rows).items()
    }
    return summary | {
        "threshold": predictor.threshold,
        "split": split,
        "num_rejects": len(rejects),
        "model": predictor.name,
        "intervals": intervals,
        "members": members,
        "scores": rows,
        "rejects": rejects,
    }

"""Commands that make and use a model: a run's, a checkpoint's or an ensemble's."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from segan.cli.commands.options import (
    Debug,
    Json,
    Local,
    Threshold,
    Tta,
    advance_and_return,
    join_cluster,
)
from segan.errors import SeganError, UsageError


class ExportFormat(enum.StrEnum):
    """Of an exported model."""

    onnx = "onnx"
    torch = "torch"
    safetensors = "safetensors"


app = typer.Typer()
ensembles = typer.Typer(no_args_is_help=True, help="The best three runs as one model.")
app.add_typer(ensembles, name="ensemble")


@app.command(epilog="segan evaluate s3://bucket/runs/first s3://bucket/isic2017 --split test")
def evaluate(
    model: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    archive: Annotated[str, typer.Argument(help="Archive: a folder or s3:// prefix.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    threshold: Threshold = None,
    tta: Tta = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a model against an archive's masks, at the original images' size."""
    from segan import storage
    from segan.cli.console import print_json, print_table, progress_bar
    from segan.data.archive.reader import open_archive
    from segan.evaluation.score import ScoreTask, summarise
    from segan.inference.pipeline import run_image_task
    from segan.inference.predictor import Predictor

    pairs = open_archive(storage.normalise(archive)).split(split)
    predictor = Predictor.load(model, threshold, tta=tta)
    if local:
        done: Iterator[dict[str, Any]] = run_image_task(predictor, pairs, ScoreTask())
    else:
        from ray_jobs.batch.evaluate import score

        join_cluster(debug)
        done = score(pairs, predictor.name, threshold, tta)
    with progress_bar("scoring", len(pairs)) as advance:
        rows = sorted(
            (advance_and_return(one, advance) for one in done), key=lambda row: str(row["id"])
        )
    summary = summarise(rows) | {"threshold": predictor.threshold, "split": split}
    members = [
        {"model": member.name, "threshold": member.threshold, **scores}
        for member, scores in zip(predictor.members, summary.pop("members", ()), strict=False)
    ]
    if as_json:
        found = {"model": predictor.name, "members": members, "scores": rows}
        print_json(summary | found)
        return
    names = ["accuracy", "dice", "jaccard", "threshold"]
    shown = [(f"member {i}", member) for i, member in enumerate(members, 1)]
    shown.append(("ensemble" if members else "model", summary))
    print_table(
        f"{predictor.name} on {summary['num_images']} images of {split}",
        ["", *names],
        [[who, *(scores[n] for n in names)] for who, scores in shown],
    )


@app.command(epilog="segan predict s3://bucket/runs/first ./photographs ./masks")
def predict(
    model: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    images: Annotated[str, typer.Argument(help="An image, a folder or an s3:// prefix.")],
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the masks.")],
    probability: Annotated[
        bool, typer.Option("--probability", help="Each image's probability map too.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write maps of the standard deviation over an ensemble's members.",
        ),
    ] = False,
    threshold: Threshold = None,
    tta: Tta = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do again what is there, or another model's.")
    ] = False,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the mask of each image at its own size, in the challenge's file names.

    predictions.csv says of each image its lesion's area, confidence and flags. Given again, it does
    what is not there yet.
    """
    from segan import storage
    from segan.cli.console import echo, print_json, progress_bar
    from segan.inference.masks import PROBABILITY, UNCERTAINTY, MaskWriter, find_images
    from segan.inference.pipeline import run_image_task
    from segan.inference.predictions import PredictionTable
    from segan.inference.predictor import Predictor

    found, place = find_images(images), storage.normalise(out)
    storage.check_access(place)
    predictor = Predictor.load(model, threshold, tta=tta)
    if uncertainty and len(predictor.members) == 1:
        raise UsageError(f"{predictor.name}: --uncertainty needs an ensemble, found one segmentor")
    asked = {PROBABILITY: probability, UNCERTAINTY: uncertainty}
    work = MaskWriter(place, tuple(kind for kind, is_asked in asked.items() if is_asked))
    with PredictionTable(work, predictor, overwrite) as kept:
        missing = kept.find_missing(found)
        there = len(found) - len(missing)
        if there:
            echo(f"{there} of {len(found)} masks are there already")
        if local or not missing:
            done = run_image_task(predictor, missing, work)
        else:
            from ray_jobs.batch.predict import predict as predict_on_ray

            join_cluster(debug)
            done = predict_on_ray(missing, predictor.name, work, threshold, tta)
        with progress_bar("predicting", len(found), there) as advance:
            for one in done:
                kept.add(one)
                advance(1)
    rows = kept.get_rows(found)
    rejects = [row for row in rows if row.error]
    for row in rejects:
        echo(f"not segmented: {row.error}")
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        flagged = sum(bool(row.flags) for row in rows)
        echo(f"{len(missing) - len(rejects)} masks written to {place}; {flagged} images have flags")
    if rejects:
        raise SeganError(f"{len(rejects)} of {len(rows)} images could not be read")


@app.command(epilog="segan export s3://bucket/ensembles/first ./exported --format onnx")
def export(
    model: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the files.")],
    export_format: Annotated[
        ExportFormat, typer.Option("--format", help="ONNX, torch.export's .pt2, or weights alone.")
    ] = ExportFormat.onnx,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Greatest difference of a probability that passes.")
    ] = 1e-4,
    threshold: Threshold = None,
    tta: Tta = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model as one file that other programs load, once it is found to give the same."""
    from segan.cli.console import echo, print_json, spinner
    from segan.inference.export import export as write_model
    from segan.inference.predictor import Predictor

    predictor = Predictor.load(model, threshold, tta=tta)
    with spinner(f"exporting {predictor.name}, and loading it again"):
        about = write_model(predictor, out, export_format.value, tolerance)
    if as_json:
        print_json(about)
    else:
        verification = about["verification"]
        same = "weights bitwise equal"
        if "max_abs_difference" in verification:
            same = f"probabilities within {verification['max_abs_difference']:.2g} of the model's"
        echo(f"{about['file']}, model.json and README.md written to {out}; {same}")


@ensembles.command("build", epilog="segan ensemble build --study s3://b/studies/k --out s3://b/e/k")
def build_ensemble(
    out: Annotated[str, typer.Option(help="Folder or s3:// prefix for the ensemble.")],
    study: Annotated[str | None, typer.Option(help="URI of a study: its trials' best.")] = None,
    member: Annotated[
        list[str] | None, typer.Option(help="URI of a run or checkpoint; can be given again.")
    ] = None,
    records: Annotated[str, typer.Option(help="URI of the records; the runs' own else.")] = "",
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Each member by what it adds to those before it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an ensemble.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make one model of the three best runs, with a threshold of its own."""
    from segan.cli.console import echo, print_json, show_ensemble
    from segan.evaluation.select import find_candidates
    from segan.report.ensemble import build_ensemble

    if not (study or member):
        raise UsageError("ensemble build: expected --study URI or --member URI, found neither")
    candidates = find_candidates(study, member or ())
    ensemble = build_ensemble(out, candidates, records, greedy, overwrite, echo)
    if as_json:
        print_json(ensemble.model_dump(mode="json"))
    else:
        show_ensemble(out, ensemble)

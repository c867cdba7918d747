"""Commands that segment with a model, export it, or make one of several."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from segan.cli.commands.options import (
    Debug,
    Json,
    Local,
    ModelArgument,
    OutArgument,
    OutOption,
    Overwrite,
    RecordsOption,
    Threshold,
    Tta,
    join_cluster,
)
from segan.errors import SeganError, UsageError
from segan.utils.text import count_noun


class ExportFormat(enum.StrEnum):
    onnx = "onnx"
    torch = "torch"
    safetensors = "safetensors"
    huggingface = "huggingface"
    monai_bundle = "monai-bundle"


app = typer.Typer()
ensembles = typer.Typer(no_args_is_help=True, help="Combine the best three runs into one model.")
app.add_typer(ensembles, name="ensemble")


@app.command(epilog="segan predict s3://bucket/runs/first ./photographs ./masks")
def predict(
    model: ModelArgument,
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="An image, a folder or an s3:// prefix.")
    ],
    out: OutArgument,
    probability: Annotated[
        bool, typer.Option("--probability", help="Also write maps of the probability.")
    ] = False,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write maps of the standard deviation over an ensemble's members.",
        ),
    ] = False,
    label_image: Annotated[
        bool,
        typer.Option(
            "--label-image",
            help="With several classes: one image with the number of a class in each pixel, "
            "instead of a mask for each class.",
        ),
    ] = False,
    threshold: Threshold = None,
    tta: Tta = None,
    overwrite: Overwrite = False,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a mask for each image at the image's own size, named as in the challenge.

    A model with several classes writes those of each class in a folder of its name.
    predictions.csv lists the area, confidence and flags of each mask. Repeating the command writes
    only the missing masks. A single image is segmented in this process, without Ray.
    """
    from segan import storage
    from segan.cli.console import echo, print_json, progress_bar
    from segan.inference.masks import PROBABILITY, UNCERTAINTY, MaskWriter, find_images
    from segan.inference.pipeline import run_image_task
    from segan.inference.predictions import PredictionTable
    from segan.inference.predictor import Predictor
    from segan.storage.lease import current_fence, hold_lease

    unusable: list[str] = []  # names
    place = storage.normalise(out)
    found = find_images(images, unusable.append)
    storage.check_access(place)
    predictor = Predictor.load(model, threshold, tta=tta)
    if uncertainty and len(predictor.members) == 1:
        raise UsageError(f"{predictor.name}: --uncertainty needs an ensemble, found one segmentor")
    if label_image and len(predictor.class_names) == 1:
        raise UsageError(f"{predictor.name}: --label-image needs several classes, found one")
    maps = {PROBABILITY: probability, UNCERTAINTY: uncertainty}
    kinds = tuple(kind for kind, is_requested in maps.items() if is_requested)
    with (
        hold_lease(place),
        PredictionTable(
            MaskWriter(place, kinds, current_fence(place), predictor.class_names, label_image),
            predictor,
            overwrite,
        ) as table,
    ):
        task = table.task
        missing = table.find_missing(found)
        num_present = len(found) - len(missing)
        if num_present:
            echo(f"{num_present} of {len(found)} masks exist already")
        if local or len(missing) <= 1:
            results = run_image_task(predictor, missing, task)
        else:
            from ray_jobs.batch.inference import map_images

            join_cluster(debug)
            results = map_images(task, missing, predictor.name, threshold, tta)
        with progress_bar("predicting", len(found), num_present) as advance:
            for result in results:
                table.add(result)
                advance(1)
    rows = table.get_rows(found)
    rejects = [row for row in rows if row.error]
    for error in [*unusable, *(row.error for row in rejects)]:
        echo(f"not segmented: {error}")
    if as_json:
        print_json([row.to_dict() for row in rows])
    else:
        flagged = len({row.id for row in rows if row.flags})
        per_image = 1 if label_image else len(predictor.class_names)
        noun = "label image" if label_image else "mask"
        written = count_noun((len(missing) - len(rejects)) * per_image, noun)
        echo(f"{written} written to {place}; flags on {count_noun(flagged, 'image')}")
    if rejects or unusable:
        total = len({row.id for row in rows}) + len(unusable)
        raise SeganError(f"{len(rejects) + len(unusable)} of {total} images could not be read")


@app.command(epilog="segan export s3://bucket/ensembles/first ./exported --format onnx")
def export(
    model: ModelArgument,
    out: OutArgument,
    export_format: Annotated[
        ExportFormat,
        typer.Option(
            "--format", help="ONNX, torch.export's .pt2, the weights alone, or a folder of the Hub."
        ),
    ] = ExportFormat.onnx,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest accepted difference of a probability.")
    ] = 1e-4,
    threshold: Threshold = None,
    tta: Tta = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a model for other programs and verify that it reproduces the model's outputs."""
    from segan import storage
    from segan.cli.console import echo, print_json, spinner
    from segan.inference.export import export as export_model
    from segan.inference.predictor import Predictor

    storage.normalise(out)  # fail before a long work
    predictor = Predictor.load(model, threshold, tta=tta)
    with spinner(f"exporting and verifying {predictor.name}"):
        description = export_model(predictor, out, export_format.value, tolerance)
    if as_json:
        print_json(description)
    else:
        verification = description["verification"]
        result = "weights bitwise equal"
        if "max_abs_difference" in verification:
            difference = verification["max_abs_difference"]
            result = f"probabilities within {difference:.2g} of the model's"
        echo(f"{description['file']} and its description written to {out}; {result}")


@ensembles.command("build", epilog="segan ensemble build --study s3://b/studies/k --out s3://b/e/k")
def build_ensemble(
    out: OutOption,
    study: Annotated[
        str | None,
        typer.Option(metavar="STUDY", help="URI of a study; its trials are the candidates."),
    ] = None,
    member: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN", help="URI of a run or checkpoint as a candidate; can be repeated."
        ),
    ] = None,
    records: RecordsOption = "",
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy",
            help="Add members one by one, each the best complement; default: the best 3.",
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Combine three runs into one model with its own threshold."""
    from segan.cli.console import echo, print_json
    from segan.cli.tables import show_ensemble
    from segan.evaluation.select import find_candidates
    from segan.report.ensemble import build_ensemble
    from segan.runs.study import Study

    if not (study or member):
        raise UsageError("ensemble build: expected --study URI or --member URI, found neither")
    candidates = find_candidates(study, member or ())
    if study and (unfinished := Study(study).unfinished()):
        echo(f"{study}: {unfinished}; the candidates are what there is")
    ensemble = build_ensemble(out, candidates, records, greedy, overwrite, echo)
    if as_json:
        print_json(ensemble.model_dump(mode="json"))
    else:
        show_ensemble(out, ensemble)


@ensembles.command("pack", epilog="segan ensemble pack s3://b/ensembles/k ./isic2017 --half")
def pack_ensemble(
    ensemble: Annotated[str, typer.Argument(metavar="ENSEMBLE", help="URI of an ensemble.")],
    out: OutArgument,
    half: Annotated[
        bool, typer.Option("--half", help="Store kernels as float16, at half the size.")
    ] = False,
    tta: Annotated[
        bool | None,
        typer.Option(
            "--tta/--no-tta",
            help="Whether the model averages over flips unless told otherwise; default: as in the "
            "runs' config.",
        ),
    ] = None,
    records: RecordsOption = "",
    archive: Annotated[
        str,
        typer.Option(
            metavar="ARCHIVE",
            help="Also score the validation images at their own size, for the card.",
        ),
    ] = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pack an ensemble as a model to hand on, with a card and without the places of its runs.

    Its threshold and scores are those of the packed weights. The models that ship with segan are
    such folders in segan/models.
    """
    from segan.cli.console import echo, print_json
    from segan.cli.tables import show_ensemble
    from segan.report.pack import pack_ensemble as pack

    packed = pack(ensemble, out, half, tta, records, archive, overwrite, echo)
    if as_json:
        print_json(packed.model_dump(mode="json"))
    else:
        show_ensemble(out, packed)

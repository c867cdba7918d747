"""Commands that make archives and records."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from segan.cli.commands.options import (
    ArchiveArgument,
    ClassesOption,
    Debug,
    Json,
    Local,
    OutArgument,
    Overwrite,
    join_cluster,
)
from segan.utils.models import MAX_FRAME_SIDE
from segan.utils.resources import usable_cpus

app = typer.Typer()


class SyntheticMasks(enum.StrEnum):
    lesion = "lesion"
    attributes = "attributes"
    labels = "labels"


@app.command(epilog="segan synth s3://bucket/synthetic --train 400 --validation 60 --test 60")
def synth(
    out: OutArgument,
    train: Annotated[int, typer.Option(min=0, help="Training pairs.")] = 400,
    validation: Annotated[int, typer.Option(min=0, help="Validation pairs.")] = 60,
    test: Annotated[int, typer.Option(min=0, help="Test pairs.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same pairs.")] = 0,
    short_side: Annotated[
        int, typer.Option(min=32, help="Approximate length of an image's short side, pixels.")
    ] = 256,
    masks: Annotated[
        SyntheticMasks,
        typer.Option(
            help="One mask of the lesion, five overlapping `attributes` as in ISIC 2018, "
            "or `labels`: images with the number of one of three classes in each pixel."
        ),
    ] = SyntheticMasks.lesion,
    debug: Debug = False,
) -> None:
    """Generate a synthetic archive of dermoscopy-like images with masks.

    Folders and files are named as in the ISIC challenges of 2017 and 2018. Several classes are
    described in classes.yaml.
    """
    from segan import storage
    from segan.cli.console import echo, progress_bar
    from segan.data.archive.label_classes import CLASSES_FILE
    from segan.data.synthetic import generate_archive
    from segan.data.synthetic_classes import KINDS
    from segan.storage.lease import hold_lease

    place = storage.normalise(out)
    counts = {"train": train, "validation": validation, "test": test}

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(place, name), content)

    with hold_lease(place), progress_bar("generating", sum(counts.values())) as advance:
        kind = KINDS[masks]
        if kind.classes:
            write(CLASSES_FILE, kind.classes)
        ids = generate_archive(
            counts, seed, write, short_side, lambda _: advance(1), kind.write_sample
        )
    echo(f"{len(ids)} synthetic pairs written to {place}")


@app.command(epilog="segan ingest ./isic2017 s3://bucket/records/isic2017")
def ingest(
    source: ArchiveArgument,
    out: OutArgument,
    width: Annotated[
        int, typer.Option(min=64, max=MAX_FRAME_SIDE, help="Width of the frames, pixels.")
    ] = 180,
    height: Annotated[
        int, typer.Option(min=64, max=MAX_FRAME_SIDE, help="Height of the frames, pixels.")
    ] = 135,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Pairs per Parquet file.")] = 250,
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="Fail if more than this fraction is rejected.")
    ] = 0.05,
    folds: Annotated[
        int, typer.Option(min=0, help="Number of cross-validation folds; 0 keeps the splits.")
    ] = 0,
    fold: Annotated[int, typer.Option(min=0, help="Validation fold, counted from 0.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the fold assignment.")] = 0,
    classes: ClassesOption = "",
    drop_duplicates: Annotated[
        bool,
        typer.Option(
            "--drop-duplicates", help="Drop training pairs that duplicate validation or test."
        ),
    ] = False,
    overwrite: Overwrite = False,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes with --local; 0: one per core.")
    ] = 0,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check and resize an archive's pairs and write them as records.

    Repeating the command decodes only new or changed pairs.
    """
    from segan import storage
    from segan.utils import processes

    workers = workers or usable_cpus()
    if local and workers > 1:
        processes.preload("segan.data.records.shards")  # while this process lists the archive
    from segan.cli.console import print_json, progress_bar
    from segan.cli.tables import show_records
    from segan.data.archive.folds import k_fold_split
    from segan.data.archive.reader import open_archive
    from segan.data.ingest import IngestOptions, check_output, local_executor
    from segan.data.ingest import ingest as write_records

    place = storage.normalise(out)
    options = IngestOptions(
        (width, height), rows_per_shard, max_rejects, overwrite, drop_duplicates
    )
    archive = open_archive(storage.normalise(source), classes)
    if folds:
        archive = k_fold_split(archive, folds, fold, seed)
    if not overwrite:  # fail before joining a cluster
        check_output(place, archive.uri, options.size, archive.class_names)
    if local:
        executor = local_executor(workers)
    else:
        from ray_jobs.batch.ingest import cluster_executor as executor

        join_cluster(debug)
    with progress_bar("ingesting", len(archive.pairs)) as advance:
        manifest = write_records(archive, place, options, executor, advance)
    if as_json:
        print_json(manifest.to_json())
    else:
        show_records(place, manifest)

"""Commands that bring images to where training reads them."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from segan.cli.commands.options import Debug, Json, Local, join_cluster

app = typer.Typer()


@app.command(epilog="segan synth s3://bucket/drawn --train 400 --validation 60 --test 60")
def synth(
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the archive.")],
    train: Annotated[int, typer.Option(min=0, help="Pairs to train on.")] = 400,
    validation: Annotated[int, typer.Option(min=0, help="Pairs to validate on.")] = 60,
    test: Annotated[int, typer.Option(min=0, help="Pairs to test on.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same pairs.")] = 0,
    short_side: Annotated[int, typer.Option(min=32, help="Pixels of the short side, about.")] = 256,
    debug: Debug = False,
) -> None:
    """Draw dermoscopy-like pairs in the challenge's own folder and file names."""
    from segan import storage
    from segan.cli.console import echo, progress_bar
    from segan.data.synthetic import generate_archive

    place = storage.normalise(out)
    storage.check_access(place)
    counts = {"train": train, "validation": validation, "test": test}

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(place, name), content)

    with progress_bar("drawing", sum(counts.values())) as advance:
        ids = generate_archive(counts, seed, write, short_side, lambda _: advance(1))
    echo(f"{len(ids)} pairs drawn to {place}")


@app.command(epilog="segan ingest ./isic2017 s3://bucket/records/isic2017")
def ingest(
    source: Annotated[str, typer.Argument(help="Archive: folder, s3:// prefix, zip or CSV.")],
    out: Annotated[str, typer.Argument(help="Folder or s3:// prefix for the records.")],
    width: Annotated[int, typer.Option(min=64, help="Pixels of a frame.")] = 180,
    height: Annotated[int, typer.Option(min=64, help="Pixels of a frame.")] = 135,
    rows_per_shard: Annotated[int, typer.Option(min=1, help="Pairs in a Parquet file.")] = 250,
    max_rejects: Annotated[
        float, typer.Option(min=0, max=1, help="Share of rejected pairs that stops the job.")
    ] = 0.05,
    folds: Annotated[int, typer.Option(min=0, help="Split anew into so many folds.")] = 0,
    fold: Annotated[int, typer.Option(min=0, help="The one to validate on, from 0.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the folds.")] = 0,
    drop_duplicates: Annotated[
        bool,
        typer.Option("--drop-duplicates", help="Train on nothing that validation or test has."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace records there.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="With --local; 0 for one a core.")] = 0,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Read an archive's pairs, check and resize them, and write them as records.

    Given again, it decodes what is new or changed and takes over the rest.
    """
    from segan import storage
    from segan.utils import processes

    workers = workers or os.cpu_count() or 1
    if local and workers > 1:
        processes.preload(
            "segan.data.records.shards"
        )  # meanwhile this one imports, and lists the archive
    from segan.cli.console import print_json, progress_bar, show_records
    from segan.data.archive.folds import k_fold_split
    from segan.data.archive.reader import open_archive
    from segan.data.ingest import IngestOptions, check_output, local_executor
    from segan.data.ingest import ingest as write_records

    place = storage.normalise(out)
    options = IngestOptions(
        (width, height), rows_per_shard, max_rejects, overwrite, drop_duplicates
    )
    archive = open_archive(storage.normalise(source))
    if folds:
        archive = k_fold_split(archive, folds, fold, seed)
    if not overwrite:  # said before a cluster is joined
        check_output(place, archive.uri, options.size)
    if local:
        executor = local_executor(workers)
    else:
        from ray_jobs.batch.ingest import cluster_executor as executor

        join_cluster(debug)
    with progress_bar("ingesting", len(archive.pairs)) as advance:
        manifest = write_records(archive, place, options, executor, advance)
    if as_json:
        print_json(manifest.model_dump())
    else:
        show_records(place, manifest)

"""Benchmark commands; each compares variants with a roofline of the hardware."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated

import typer

from segan.cli.commands.options import (
    FOLDER,
    OUT,
    ConfigSource,
    Debug,
    Json,
    OverrideArgs,
    join_cluster,
)

if TYPE_CHECKING:
    import torch

    from segan.bench.measure import BenchReport
    from segan.bench.scale import ScaleReport

app = typer.Typer()
bench = typer.Typer(
    no_args_is_help=True,
    help="Benchmarks: the training step, the data stream, large runs, ingest and prediction.",
)
app.add_typer(bench, name="bench")

Repeats = Annotated[int, typer.Option(min=1, help="Repeats per variant, interleaved.")]
Threads = Annotated[int, typer.Option(min=0, help="Torch CPU threads; 0: all cores.")]
ShortSide = Annotated[
    int,
    typer.Option(min=32, help="Approximate length of a synthetic image's short side, pixels."),
]


@bench.command(epilog="segan bench step network.width=16 training.batch_size=25")
def step(
    overrides: OverrideArgs = None,
    config: ConfigSource = None,
    repeats: Repeats = 5,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also time torch.compile; takes minutes longer.")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time a training step: a plain baseline, segan's step, and segan's with each optimisation.

    Runs on the first CUDA device, or on CPUs without one.
    """
    import torch

    from segan.bench.step import bench_step
    from segan.cli.console import echo
    from segan.config import load_config

    torch.set_num_threads(threads or os.cpu_count() or 1)
    settings = load_config(config, overrides or [])
    _show_report(bench_step(settings, _device(), repeats, compiled, echo), as_json)


@bench.command(epilog="segan bench stream --out s3://bucket/bench --pairs 2000 --ranks 2")
def stream(
    out: Annotated[
        str,
        typer.Option(
            metavar=OUT, help=f"{FOLDER} for synthetic records; default: a temporary folder."
        ),
    ] = "",
    records: Annotated[
        str, typer.Option(metavar="URI", help="URI of records to use instead.")
    ] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Number of synthetic pairs.")] = 2000,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that read batches.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs per repeat.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per rank and batch.")] = 25,
    repeats: Repeats = 3,
    no_baselines: Annotated[
        bool, typer.Option("--no-baselines", help="Do not time the two baselines.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the data stream without training.

    The baselines are torch's DataLoader and one Ray Data execution per epoch.
    """
    import tempfile

    from ray_jobs.batch.bench import bench_stream
    from segan import storage
    from segan.bench.frames import write_records
    from segan.cli.console import echo
    from segan.data.records.format import read_manifest
    from segan.data.stream.batches import StreamSpec
    from segan.data.stream.sampler import DeterministicSampler

    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        place = storage.normalise(records or out or folder)
        if not records:
            place = storage.join(place, f"synthetic-{pairs}")
            write_records(place, pairs)
        spec = StreamSpec(
            place,
            DeterministicSampler(read_manifest(place), "train", 0),
            epochs,
            0,
            batch_size,
            ranks,
            ranks,
        )
        join_cluster(debug)
        _show_report(bench_stream(spec, repeats, not no_baselines, echo), as_json)


@bench.command(epilog="segan bench scale --max-images 10000000 --max-workers 512")
def scale(
    max_images: Annotated[int, typer.Option(min=1000, help="Images of the largest run.")] = (
        1_000_000
    ),
    max_workers: Annotated[int, typer.Option(min=4, help="Workers of the largest run.")] = 512,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Simulate how planning, reading and bookkeeping grow with images and workers.

    Runs in this process on made-up records, without Ray. An exponent of 1 means that a cost grows
    as the images or workers do, 0 that it does not grow.
    """
    from segan.bench.scale import bench_scale
    from segan.cli.console import echo, print_json

    images = [max_images // 100, max_images // 10, max_images]
    workers = [max(2, max_workers // 64), max(3, max_workers // 8), max_workers]
    report = bench_scale(images, workers, echo)
    if as_json:
        print_json(report.to_dict())
    else:
        _show_scale(report)


@bench.command(epilog="segan bench ingest --archive s3://bucket/isic2017 --workers 8")
def ingest(
    archive: Annotated[str, typer.Option(help="Archive to ingest; default: synthetic.")] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Number of synthetic pairs.")] = 500,
    short_side: ShortSide = 768,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    repeats: Repeats = 3,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time ingest; the baseline is a plain loop over the same files."""
    import tempfile

    from segan import storage
    from segan.bench.ingest import bench_ingest, write_synthetic_archive
    from segan.cli.console import echo

    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        source = (
            storage.normalise(archive)
            if archive
            else write_synthetic_archive(folder, pairs, short_side)
        )
        report = bench_ingest(source, workers or os.cpu_count() or 1, repeats, echo)
    _show_report(report, as_json)


@bench.command(epilog="segan bench predict --model s3://bucket/ensembles/first --images ./photos")
def predict(
    overrides: OverrideArgs = None,
    config: ConfigSource = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="URI of a run, a checkpoint or an ensemble; default: untrained weights.",
        ),
    ] = "",
    images: Annotated[str, typer.Option(help=f"{FOLDER}; default: synthetic images.")] = "",
    count: Annotated[int, typer.Option(min=1, help="Number of synthetic images.")] = 100,
    short_side: ShortSide = 768,
    repeats: Repeats = 3,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time `segan predict --local`; the baseline predicts one image after another."""
    import tempfile

    import torch

    from segan.bench.ingest import write_synthetic_archive
    from segan.bench.predict import bench_predict, write_untrained_checkpoint
    from segan.cli.console import echo
    from segan.config import load_config
    from segan.data.ingest import FRAME_SIZE

    torch.set_num_threads(threads or os.cpu_count() or 1)
    settings = load_config(config, overrides or [])
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        report = bench_predict(
            model or write_untrained_checkpoint(folder, settings, FRAME_SIZE),
            images or write_synthetic_archive(folder, count, short_side),
            _predict,
            _device(),
            repeats,
            echo,
        )
    _show_report(report, as_json)


def _show_scale(report: ScaleReport) -> None:
    from segan.cli.console import print_table

    for size, points, exponents in (
        ("images", report.by_images, report.exponents_in_images),
        ("workers", report.by_workers, report.exponents_in_workers),
    ):
        other = "workers" if size == "images" else "images"
        rows = [
            [
                name.replace("_", " "),
                *(f"{getattr(point, name):.4g}" for point in points),
                f"{e:.2f}",
            ]
            for name, e in exponents.items()
        ]
        columns = ["", *(f"{getattr(point, size):,}" for point in points), "exponent"]
        print_table(f"{size}, with {getattr(points[0], other):,} {other}", columns, rows)


def _predict(model: str, images: str, out: str) -> None:
    """`segan predict --local` without its output."""
    from segan.cli.commands import models
    from segan.cli.console import preserve_stdout

    with (
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stderr(devnull),
        contextlib.redirect_stdout(devnull),
        preserve_stdout(),
    ):
        models.predict(model, images, out, local=True, as_json=True)


def _device() -> torch.device:
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _show_report(report: BenchReport, as_json: bool) -> None:
    from segan.cli.console import echo, print_json, print_table

    content = report.to_dict()
    if as_json:
        print_json(content)
        return
    rows = []
    for timing, entry in zip(report.timings, content["timings"], strict=True):
        spread = 100 * (max(timing.seconds) - min(timing.seconds)) / timing.median
        numbers = [1000 * timing.median, timing.rate, timing.roofline_rate]
        rows.append(
            [
                timing.name,
                *(f"{number:.4g}" for number in numbers),
                f"{100 * timing.roofline_fraction:.1f} %",
                f"{spread:.0f} %",
                f"{entry['speedup']:.2f}",
            ]
        )
    columns = ["", "ms", "images/s", "roofline", "of roofline", "spread", "speedup"]
    repeats = len(report.timings[0].seconds)
    print_table(f"{report.title}; medians of {repeats} repeats", columns, rows)
    for timing in report.timings:
        if timing.notes:
            notes = ", ".join(f"{name} {v:.4g}" for name, v in timing.notes.items())
            echo(f"{timing.name}: {notes}")
    echo(f"roofline, images/s: {report.roofline}")
    machine = content["machine"]
    load = " ".join(map(str, machine["load"]))
    echo(
        f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, "
        f"torch {machine['torch']}, Python {machine['python']}, load {load}, {content['timestamp']}"
    )

"""Commands that measure: how fast the parts are, beside what the hardware allows."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated

import typer

from segan.cli.commands.options import ConfigFile, Debug, Json, OverrideArgs, join_cluster

if TYPE_CHECKING:
    import torch

    from segan.bench.measure import BenchReport

app = typer.Typer()
bench = typer.Typer(
    no_args_is_help=True, help="How fast the parts are, beside what the hardware allows."
)
app.add_typer(bench, name="bench")

Repeats = Annotated[int, typer.Option(min=1, help="Of each way, in turn.")]
Threads = Annotated[int, typer.Option(min=0, help="Of torch on CPUs; 0 for one a core.")]


@bench.command(epilog="segan bench step network.width=16 training.batch_size=25")
def step(
    overrides: OverrideArgs = None,
    config: ConfigFile = None,
    repeats: Repeats = 5,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Compiled kernels and graphs too: minutes more.")
    ] = False,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Time a training step: the authors' order written plainly, ours, each optimisation.

    On the first CUDA device where there is one, else on CPUs.
    """
    import torch

    from segan.bench.step import bench_step
    from segan.cli.console import echo
    from segan.config import load_config

    torch.set_num_threads(threads or os.cpu_count() or 1)
    settings = load_config(config, overrides or [])
    _show_report(bench_step(settings, _device(), repeats, compiled, echo), as_json)


@bench.command(epilog="segan bench stream --at s3://bucket/bench --pairs 2000 --ranks 2")
def stream(
    out: Annotated[
        str, typer.Option(help="Folder or s3:// prefix for drawn records; a temporary one else.")
    ] = "",
    records: Annotated[str, typer.Option(help="URI of records to take instead.")] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Drawn pairs.")] = 2000,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that take batches.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Of a repeat.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images to a rank at once.")] = 25,
    repeats: Repeats = 3,
    no_baselines: Annotated[bool, typer.Option("--alone", help="Without the two rivals.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the stream without a training, beside torch's DataLoader and an execution an epoch."""
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
            place = storage.join(place, f"drawn-{pairs}")
            write_records(place, pairs)
        plan = StreamSpec(
            place,
            DeterministicSampler(read_manifest(place), "train", 0),
            epochs,
            0,
            batch_size,
            ranks,
        )
        join_cluster(debug)
        _show_report(bench_stream(plan, repeats, not no_baselines, echo), as_json)


@bench.command(epilog="segan bench ingest --archive s3://bucket/isic2017 --workers 8")
def ingest(
    archive: Annotated[str, typer.Option(help="Archive to ingest instead of a drawn one.")] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Drawn pairs.")] = 500,
    short_side: Annotated[int, typer.Option(min=32, help="Pixels of the drawn, about.")] = 768,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 for one a core.")] = 0,
    repeats: Repeats = 3,
    as_json: Json = False,
) -> None:
    """Time ingest beside a plain loop over the same files."""
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
    config: ConfigFile = None,
    model: Annotated[str, typer.Option(help="Run, checkpoint or ensemble; untrained else.")] = "",
    images: Annotated[str, typer.Option(help="Folder or s3:// prefix; drawn images else.")] = "",
    count: Annotated[int, typer.Option(min=1, help="Drawn images.")] = 100,
    short_side: Annotated[int, typer.Option(min=32, help="Pixels of the drawn, about.")] = 768,
    repeats: Repeats = 3,
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Time `segan predict --local` beside a loop that takes one image after another."""
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


def _predict(model: str, images: str, out: str) -> None:
    """The command itself, its lines and results aside."""
    from segan.cli.main import main

    with (
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stderr(devnull),
        contextlib.redirect_stdout(devnull),
    ):
        code = main(["predict", model, images, out, "--local", "--json"])
    assert code == 0, "what is timed must work"


def _device() -> torch.device:
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _show_report(report: BenchReport, as_json: bool) -> None:
    from segan.cli.console import echo, print_json, print_table

    found = report.to_dict()
    if as_json:
        print_json(found)
        return
    rows = []
    for way, line in zip(report.timings, found["timings"], strict=True):
        spread = 100 * (max(way.seconds) - min(way.seconds)) / way.median
        figures = [1000 * way.median, way.rate, way.roofline_rate]
        rows.append(
            [
                way.name,
                *("-" if figure is None else f"{figure:.4g}" for figure in figures),
                "-" if way.roofline_fraction is None else f"{100 * way.roofline_fraction:.1f} %",
                f"{spread:.0f} %",
                f"{line['speedup']:.2f}",
            ]
        )
    columns = ["", "ms", "images/s", "floor", "share", "spread", "times first"]
    print_table(
        f"{report.title}; medians of {len(report.timings[0].seconds)} repeats", columns, rows
    )
    for way in report.timings:
        if way.notes:
            echo(f"{way.name}: {', '.join(f'{name} {v:.4g}' for name, v in way.notes.items())}")
    echo(f"floor, images/s: {report.roofline}")
    machine = found["machine"]
    load = " ".join(map(str, machine["load"]))
    echo(
        f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, "
        f"torch {machine['torch']}, Python {machine['python']}, load {load}, {found['timestamp']}"
    )

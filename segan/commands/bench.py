"""Commands that measure: how fast the parts are, beside what the hardware allows."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated

import typer

from segan.commands.options import ConfigFile, Debug, Json, Overrides, join_cluster

if TYPE_CHECKING:
    import torch

    from segan.bench.measure import Report

app = typer.Typer()
bench = typer.Typer(
    no_args_is_help=True, help="How fast the parts are, beside what the hardware allows."
)
app.add_typer(bench, name="bench")

Repeats = Annotated[int, typer.Option(min=1, help="Of each way, in turn.")]
Threads = Annotated[int, typer.Option(min=0, help="Of torch on CPUs; 0 for one a core.")]


@bench.command(epilog="segan bench step network.width=16 training.batch_size=25")
def step(
    overrides: Overrides = None,
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
    from segan.config import load_config
    from segan.terminal import say

    torch.set_num_threads(threads or os.cpu_count() or 1)
    settings = load_config(config, overrides or [])
    _show(bench_step(settings, _device(), repeats, compiled, say), as_json)


@bench.command(epilog="segan bench stream --at s3://bucket/bench --pairs 2000 --ranks 2")
def stream(
    at: Annotated[
        str, typer.Option(help="Folder or s3:// prefix for drawn records; a temporary one else.")
    ] = "",
    records: Annotated[str, typer.Option(help="URI of records to take instead.")] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Drawn pairs.")] = 2000,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that take batches.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Of a repeat.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Images to a rank at once.")] = 25,
    repeats: Repeats = 3,
    alone: Annotated[bool, typer.Option("--alone", help="Without the two rivals.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Time the stream without a training, beside torch's DataLoader and an execution an epoch."""
    import tempfile

    from ray_jobs.bench import bench_stream
    from segan import storage
    from segan.bench.frames import write_records
    from segan.data.batches import Plan
    from segan.data.records import read_manifest
    from segan.data.sequence import Sequence
    from segan.terminal import say

    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        place = storage.normalise(records or at or folder)
        if not records:
            place = storage.join(place, f"drawn-{pairs}")
            write_records(place, pairs)
        plan = Plan(place, Sequence(read_manifest(place), "train", 0), epochs, 0, batch_size, ranks)
        join_cluster(debug)
        _show(bench_stream(plan, repeats, not alone, say), as_json)


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
    from segan.bench.ingest import bench_ingest, draw
    from segan.terminal import say

    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        source = storage.normalise(archive) if archive else draw(folder, pairs, short_side)
        report = bench_ingest(source, workers or os.cpu_count() or 1, repeats, say)
    _show(report, as_json)


@bench.command(epilog="segan bench predict --model s3://bucket/ensembles/first --images ./photos")
def predict(
    overrides: Overrides = None,
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

    from segan.bench.predict import bench_predict, draw_images, untrained
    from segan.config import load_config
    from segan.data.ingest import FRAME
    from segan.terminal import say

    torch.set_num_threads(threads or os.cpu_count() or 1)
    settings = load_config(config, overrides or [])
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:
        report = bench_predict(
            model or untrained(folder, settings, FRAME),
            images or draw_images(folder, count, short_side),
            _predict,
            _device(),
            repeats,
            say,
        )
    _show(report, as_json)


def _predict(model: str, images: str, out: str) -> None:
    """The command itself, its lines and results aside."""
    from segan.cli import main

    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        code = main(["predict", model, images, out, "--local", "--json"])
    assert code == 0, "what is timed must work"


def _device() -> torch.device:
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def _show(report: Report, as_json: bool) -> None:
    from segan.terminal import answer, say, table

    found = report.plain()
    if as_json:
        answer(found)
        return
    rows = []
    for way, line in zip(report.ways, found["ways"], strict=True):
        spread = 100 * (max(way.seconds) - min(way.seconds)) / way.median
        figures = [1000 * way.median, way.rate, way.most]
        rows.append(
            [
                way.name,
                *("-" if figure is None else f"{figure:.4g}" for figure in figures),
                "-" if way.share is None else f"{100 * way.share:.1f} %",
                f"{spread:.0f} %",
                f"{line['times_first']:.2f}",
            ]
        )
    columns = ["", "ms", "images/s", "floor", "share", "spread", "times first"]
    table(f"{report.what}; medians of {len(report.ways[0].seconds)} repeats", columns, rows)
    for way in report.ways:
        if way.notes:
            say(f"{way.name}: {', '.join(f'{name} {v:.4g}' for name, v in way.notes.items())}")
    say(f"floor, images/s: {report.floor}")
    machine = found["machine"]
    load = " ".join(map(str, machine["load"]))
    say(
        f"{machine.get('gpu') or machine['cpu']}, {machine['cores']} cores, "
        f"torch {machine['torch']}, Python {machine['python']}, load {load}, {found['when']}"
    )

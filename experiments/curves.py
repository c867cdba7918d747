"""Validation Jaccard by epoch of groups of runs, as a plot and a table.

python -m experiments.curves curves.svg best=runs/best0,runs/best1 none=runs/none0,runs/none1

draws a line for each run, in the colour of its group, and prints what each group reached.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from experiments.figures import draw_svg
from segan import storage
from segan.cli.commands.options import Debug
from segan.cli.main import main
from segan.errors import StorageError, UsageError
from segan.runs.run import Run
from segan.utils.text import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]  # epoch and Jaccard

app = typer.Typer(pretty_exceptions_enable=False)


def read_groups(texts: Sequence[str]) -> dict[str, list[Curve]]:
    """The curves of each group of runs by its name.

    Args:
        texts: "NAME=RUN,RUN,..." each.

    Raises:
        UsageError: a text is not of this form, or a name comes twice.
        StorageError: a run has no validated epoch.
    """
    groups: dict[str, list[Curve]] = {}
    for text in texts:
        name, _, uris = text.partition("=")
        if not name or not all(uris.split(",")):
            raise UsageError(
                f"{text!r}: expected NAME=RUN,RUN,... as in best=runs/best0,runs/best1"
            )
        if name in groups:
            raise UsageError(f"{name!r} comes twice; give all runs of a group together")
        groups[name] = [read_curve(uri) for uri in uris.split(",")]
    return groups


def read_curve(uri: str) -> Curve:
    """Epoch and Jaccard of each validation of a run.

    Raises:
        StorageError: it has no validated epoch.
    """
    lines = Run(uri).validations()
    if not lines:
        raise StorageError(f"{uri}: no validated epoch yet; train it further")
    return [(line["epoch"], line["jaccard"]) for line in lines]


def format_groups(groups: Mapping[str, Sequence[Curve]]) -> str:
    """A row for each group: the best Jaccard of each run, their mean, and that of the last."""
    rows = []
    for name, curves in groups.items():
        best = [max(jaccard for _, jaccard in curve) for curve in curves]
        last = [curve[-1][1] for curve in curves]
        values = ", ".join(f"{value:.3f}" for value in best)
        mean, mean_last = f"{statistics.mean(best):.3f}", f"{statistics.mean(last):.3f}"
        rows.append([name, str(max(curve[-1][0] for curve in curves)), values, mean, mean_last])
    return markdown_table(
        ["runs", "epochs", "best Jaccard of each", "mean", "mean at the end"], rows
    )


def plot(groups: Mapping[str, Sequence[Curve]], lowest: float) -> bytes:
    """The curves as SVG, from this Jaccard up."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, curves) in enumerate(groups.items()):
            for number, curve in enumerate(curves):
                label = name if number == 0 else None
                axes.plot(*zip(*curve, strict=True), color=f"C{i}", lw=1, alpha=0.8, label=label)
        axes.set(xlabel="epoch", ylabel="Jaccard on validation")
        axes.set_ylim(bottom=lowest)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")

    return draw_svg(7, 4, draw)


@app.command(epilog="python -m experiments.curves curves.svg best=runs/best0,runs/best1")
def curves(
    out: Annotated[str, typer.Argument(metavar="OUT", help="The plot, an SVG file.")],
    groups: Annotated[list[str], typer.Argument(metavar="NAME=RUN,RUN...", help="Runs by group.")],
    lowest: Annotated[float, typer.Option(help="Lowest Jaccard of the plot.")] = 0.5,
    debug: Debug = False,
) -> None:
    """Draw the validation Jaccard of groups of runs by epoch."""
    found = read_groups(groups)
    storage.write_bytes(out, plot(found, lowest))
    print(format_groups(found))


if __name__ == "__main__":
    sys.exit(main(commands=app, name="python -m experiments.curves"))

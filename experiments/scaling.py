"""How the validation Jaccard grows with width and epochs, for the recipes `paper` and `best`.

python -m experiments.scaling OUT data.records=records augment.crop=64 --local

trains every combination by `segan ablate`, one study per recipe in OUT/RECIPE, fits a law to each
(`experiments.scaling_law`), extends it to the paper's size, prints the table, and writes trainings,
laws and forecasts to OUT/scaling.json, and the plot to OUT/scaling.svg. Repeat the command to go on
where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from experiments.figures import draw_svg
from experiments.scaling_law import Point, ScalingLaw, fit_law, forecast
from segan import storage
from segan.cli.commands.options import Debug, Local, OverrideArgs
from segan.cli.main import main
from segan.config import load_config
from segan.errors import UsageError
from segan.evaluation.bootstrap import Interval
from segan.evaluation.compare import ABLATION_REPORT
from segan.utils.text import markdown_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECIPES = ("paper", "best")
FORECAST_WIDTH, FORECAST_EPOCHS = 64, 300  # the paper's size
# The schedule of k in the paper's epochs would not end in a short run; nor with the same flips at
# test would the recipes differ in their training alone.
COMMON = {"logistic.stretch_to_run": True, "evaluation.tta": False}

app = typer.Typer(pretty_exceptions_enable=False)


@dataclass(frozen=True)
class RecipeScaling:
    """A recipe's trainings, the law fitted to them, and what it gives for the paper's size."""

    recipe: str
    points: Sequence[Point]
    law: ScalingLaw
    forecast: Interval


def study_config(
    recipe: str, widths: Sequence[int], epochs: Sequence[int], seeds: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """The configuration of a recipe's study: a variant for each width and number of epochs.

    Args:
        overrides: of the recipe, `section.key=value` each.

    Raises:
        UsageError: an override is invalid.
    """
    variants = {
        f"w{width}-e{count}": {"network.width": width, "training.epochs": count}
        for count in sorted(epochs)
        for width in sorted(widths)
    }
    ablation = {"seeds": seeds, "baseline": next(iter(variants)), "variants": variants}
    tree = load_config(recipe, overrides).with_overrides(COMMON).model_dump(mode="json")
    return {**tree, "ablation": ablation}


def train(out: str, recipe: str, tree: dict[str, Any], local: bool) -> int:
    """Trains a recipe's study with `segan ablate`; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{recipe}.yaml")
        file.write_text(json.dumps(tree))  # JSON is YAML
        arguments = ["ablate", storage.join(out, recipe), "--config", str(file)]
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table of all recipes
            return main([*arguments, "--local"] if local else arguments)


def read_points(study: str) -> list[Point]:
    """The trainings of a study, by its ablation.json."""
    report = storage.read_json(storage.join(study, ABLATION_REPORT))
    return [
        Point(row["overrides"]["network.width"], row["overrides"]["training.epochs"], jaccard)
        for row in report["variants"]
        for jaccard in row["jaccard_per_seed"]
    ]


def summarise(recipe: str, points: Sequence[Point]) -> RecipeScaling:
    """Fits the law to a recipe's trainings and extends it."""
    law = fit_law(points)
    at_size = forecast(law, points, FORECAST_WIDTH, FORECAST_EPOCHS)
    return RecipeScaling(recipe, points, law, at_size)


def format_table(recipes: Sequence[RecipeScaling]) -> str:
    """A row for each recipe and width, a column for each number of epochs, in Markdown."""
    epochs = sorted({point.epochs for one in recipes for point in one.points})
    rows = []
    for one in recipes:
        for width in sorted({point.width for point in one.points}):
            cells = []
            for count in epochs:
                found = [p.jaccard for p in one.points if (p.width, p.epochs) == (width, count)]
                cells.append(", ".join(f"{jaccard:.3f}" for jaccard in found))
            rows.append([f"`{one.recipe}`", str(width), *cells])
        at_size = one.forecast
        rows.append(
            [
                f"`{one.recipe}`, forecast",
                f"{FORECAST_WIDTH}, {FORECAST_EPOCHS} epochs",
                f"{at_size.mean:.3f} ({at_size.low:.3f} to {at_size.high:.3f})",
                *[""] * (len(epochs) - 1),
            ]
        )
    return markdown_table(["recipe", "w", *(f"{count} epochs" for count in epochs)], rows)


def plot(recipes: Sequence[RecipeScaling]) -> bytes:
    """The trainings, the laws and their forecasts as SVG: Jaccard against epochs by width."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(recipes), sharey=True, squeeze=False)[0]
        for panel, one in zip(panels, recipes, strict=True):
            _draw_recipe(panel, one)
        panels[0].set_ylabel("Jaccard on validation")
        panels[0].legend(loc="lower right")

    return draw_svg(9, 3.8, draw)


def _draw_recipe(panel: Axes, one: RecipeScaling) -> None:
    first = min(point.epochs for point in one.points)
    epochs = np.geomspace(first, FORECAST_EPOCHS, 50)
    for width in sorted({point.width for point in one.points}):
        points = [point for point in one.points if point.width == width]
        x, y = [p.epochs for p in points], [p.jaccard for p in points]
        (dots,) = panel.plot(x, y, "o", markersize=4, label=f"w = {width}")
        law = one.law.jaccard(width, epochs)
        panel.plot(epochs, law, "-", lw=1, color=dots.get_color())
    panel.plot(epochs, one.law.jaccard(FORECAST_WIDTH, epochs), "k--", lw=1)
    mean, low, high = one.forecast.mean, one.forecast.low, one.forecast.high
    panel.errorbar(
        [FORECAST_EPOCHS],
        [mean],
        [[mean - low], [high - mean]],
        fmt="ks",
        markersize=4,
        capsize=3,
        label=f"w = {FORECAST_WIDTH}, forecast",
    )
    panel.set(xscale="log", title=one.recipe, xlabel="epochs")
    panel.grid(alpha=0.3)


def _parse_numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{option} {text!r}: expected numbers above 0, as in 2,4,8")
    return numbers


@app.command(epilog="python -m experiments.scaling ./scaling data.records=./records --local")
def scaling(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the studies.")],
    overrides: OverrideArgs = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipes to train, one option each; default: all.")
    ] = None,
    widths: Annotated[str, typer.Option(help="Widths w, with commas.")] = "2,4,8,16",
    epochs: Annotated[str, typer.Option(help="Epochs of the trainings.")] = "10,30,100",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each combination.")] = 1,
    local: Local = False,
    debug: Debug = False,
) -> None:
    """Train recipes at several widths and lengths, and extend the law that they follow.

    Without --local the studies run on the Ray cluster. With --recipe the law of that recipe alone
    is fitted.
    """
    sizes = _parse_numbers(widths, "--widths"), _parse_numbers(epochs, "--epochs")
    recipes = recipe or RECIPES
    trees = {name: study_config(name, *sizes, seeds, overrides or []) for name in recipes}
    for name, tree in trees.items():
        if code := train(out, name, tree, local):
            raise typer.Exit(code)
    results = [summarise(name, read_points(storage.join(out, name))) for name in recipes]
    stem = "-".join(["scaling", *(recipe or [])])
    storage.write_json(storage.join(out, f"{stem}.json"), [asdict(result) for result in results])
    storage.write_bytes(storage.join(out, f"{stem}.svg"), plot(results))
    print(format_table(results))


if __name__ == "__main__":
    sys.exit(main(commands=app, name="python -m experiments.scaling"))

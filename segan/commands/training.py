"""Commands that train: one run, or a study of many."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segan.commands.options import (
    ConfigFile,
    Debug,
    Json,
    Local,
    Overrides,
    join_cluster,
    load_settings,
)

if TYPE_CHECKING:
    from segan.config import Config
    from segan.runs import Checkpoint, Run

app = typer.Typer()


@app.command(epilog="segan train ./runs/first --config ray_jobs/configs/demo.yaml network.width=8")
def train(
    run: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the run.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train segmentor and critic; a run that was stopped goes on from its latest checkpoint.

    SIGTERM, and with --local Ctrl-C, stop it in order: with a checkpoint after the step under way.
    """
    from segan.lease import hold
    from segan.runs import Run

    settings, place = load_settings(config, overrides), Run(run)
    with hold(place.uri):  # from before anything of the run is read
        _train(settings, place, local, debug)
    best = place.best()
    assert best is not None, "a finished run has a checkpoint"
    _show_run(best, as_json)
    _report(settings, place.uri)


def _train(settings: Config, place: Run, local: bool, debug: bool) -> None:
    from segan.interrupts import stoppable
    from segan.terminal import TrainingDisplay

    if local:
        from segan.training.loop import Watchers
        from segan.training.session import train_here

        with stoppable(signal.SIGINT, signal.SIGTERM) as wish, TrainingDisplay() as display:
            train_here(settings, place, Watchers(observe=display, stop=wish))
    else:
        from ray_jobs.train import train as train_on_ray
        from segan.training.session import check

        check(settings, place)  # what cannot work is said before a cluster is joined
        join_cluster(debug)
        with stoppable(signal.SIGTERM) as wish, TrainingDisplay() as display:
            train_on_ray(settings, place, display, wish=wish)


@app.command(epilog="segan tune s3://bucket/studies/first --config ray_jobs/configs/demo.yaml")
def tune(
    study: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the study.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Then all trials to their end, in STUDY-whole.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search learning rate, clamp and final k with ASHA; a study that was stopped goes on."""
    from ray_jobs.tune import search
    from segan.lease import hold
    from segan.search import Study
    from segan.terminal import answer, say, show_study

    settings, place = load_settings(config, overrides), Study(study)
    wanted = [(place, settings)]
    if compare:
        whole = settings.search.model_copy(update={"early_stopping": False})
        other = settings.model_copy(update={"search": whole})
        wanted.append((Study(f"{place.uri}-whole"), other))

    def tell(trial: str, metrics: dict[str, Any], go_on: bool) -> None:
        last = metrics["epoch"] >= settings.training.epochs
        word = "finished" if last else "goes on" if go_on else "given up"
        say(f"{trial}  epoch {metrics['epoch']}  Jaccard {metrics['jaccard']:.3f}  {word}")

    with hold(place.uri):
        join_cluster(debug)
        for one, its_settings in wanted:
            search(its_settings, one, tell)
    boards = {one.uri: one.leaderboard() for one, _ in wanted}
    if as_json:
        answer(boards)
    else:
        for uri, rows in boards.items():
            show_study(uri, rows)
    for uri in boards:
        _report(settings, uri)


@app.command("config", epilog="segan config --config ray_jobs/configs/demo.yaml network.width=8")
def show_config(
    overrides: Overrides = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """List every knob with its value and what it means."""
    from segan.config import known_keys, load_config
    from segan.terminal import answer, table

    tree = load_config(config, overrides or []).model_dump(mode="json")
    if as_json:
        answer(tree)
        return
    rows = [(key, *key.split("."), field.description) for key, field in known_keys()]
    shown = [[key, json.dumps(tree[section][leaf]), text] for key, section, leaf, text in rows]
    table(
        "(P) the paper, (F) its Figure 1, (C) the authors' code, (O) our choice",
        ["key", "value", "meaning"],
        shown,
        left=(0, 2),
    )


def _report(settings: Config, uri: str) -> None:
    """The report of what has just ended, if it is wished for."""
    if settings.evaluation.report:
        from segan.evaluation.report.write import report_at_end
        from segan.terminal import say

        report_at_end(uri, say)


def _show_run(best: Checkpoint, as_json: bool) -> None:
    from segan.terminal import answer, table

    metrics = {k: v for k, v in best.info["metrics"].items() if k != "jaccard_curve"}
    if as_json:
        answer({"checkpoint": best.uri, **metrics})
        return
    names = ["epoch", "accuracy", "dice", "jaccard", "threshold"]
    title = f"best of {best.uri.rsplit('/checkpoints/', 1)[0]} on validation"
    table(title, ["checkpoint", *names], [[best.name, *(metrics[name] for name in names)]])

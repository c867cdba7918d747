"""Commands that train: one run, or a study of many."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segan.cli.commands.options import (
    ConfigFile,
    Debug,
    Json,
    Local,
    OverrideArgs,
    join_cluster,
    load_cli_config,
)

if TYPE_CHECKING:
    from segan.config import Config
    from segan.runs.checkpoint import Checkpoint
    from segan.runs.run import Run

app = typer.Typer()


@app.command(epilog="segan train ./runs/first --config ray_jobs/configs/demo.yaml network.width=8")
def train(
    run: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the run.")],
    overrides: OverrideArgs = None,
    config: ConfigFile = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train segmentor and critic; a run that was stopped goes on from its latest checkpoint.

    SIGTERM, and with --local Ctrl-C, stop it in order: with a checkpoint after the step under way.
    """
    from segan.runs.run import Run
    from segan.storage.lease import hold_lease

    settings, place = load_cli_config(config, overrides), Run(run)
    with hold_lease(place.uri):  # from before anything of the run is read
        _train(settings, place, local, debug)
    best = place.best_checkpoint()
    assert best is not None, "a finished run has a checkpoint"
    _show_best_checkpoint(best, as_json)
    _write_report(settings, place.uri)


def _train(settings: Config, place: Run, local: bool, debug: bool) -> None:
    from segan.cli.console import TrainingDisplay
    from segan.utils.signals import graceful_shutdown

    if local:
        from segan.training.launch import train_local
        from segan.training.trainer import Callbacks

        with (
            graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request,
            TrainingDisplay() as display,
        ):
            train_local(settings, place, Callbacks(on_step_end=display, should_stop=stop_request))
    else:
        from ray_jobs.training.driver import train as train_on_ray
        from segan.training.launch import check_config

        check_config(settings, place)  # what cannot work is said before a cluster is joined
        join_cluster(debug)
        with graceful_shutdown(signal.SIGTERM) as stop_request, TrainingDisplay() as display:
            train_on_ray(settings, place, display, stop_request=stop_request)


@app.command(epilog="segan tune s3://bucket/studies/first --config ray_jobs/configs/demo.yaml")
def tune(
    study: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the study.")],
    overrides: OverrideArgs = None,
    config: ConfigFile = None,
    compare_full: Annotated[
        bool, typer.Option("--compare", help="Then all trials to their end, in STUDY-whole.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search learning rate, clamp and final k with ASHA; a study that was stopped goes on."""
    from ray_jobs.tuning.study import run_study
    from segan.cli.console import echo, print_json, show_study
    from segan.runs.study import Study
    from segan.storage.lease import hold_lease

    settings, place = load_cli_config(config, overrides), Study(study)
    studies = [(place, settings)]
    if compare_full:
        full_config = settings.with_overrides({"search.early_stopping": False})
        studies.append((Study(f"{place.uri}-whole"), full_config))

    def on_validation(trial: str, metrics: dict[str, Any], should_continue: bool) -> None:
        last = metrics["epoch"] >= settings.training.epochs
        word = "finished" if last else "goes on" if should_continue else "given up"
        echo(f"{trial}  epoch {metrics['epoch']}  Jaccard {metrics['jaccard']:.3f}  {word}")

    with hold_lease(place.uri):
        join_cluster(debug)
        for one, its_settings in studies:
            run_study(its_settings, one, on_validation)
    boards = {one.uri: one.write_leaderboard() for one, _ in studies}
    if as_json:
        print_json(boards)
    else:
        for uri, rows in boards.items():
            show_study(uri, rows)
    for uri in boards:
        _write_report(settings, uri)


@app.command("config", epilog="segan config --config ray_jobs/configs/demo.yaml network.width=8")
def show_config(
    overrides: OverrideArgs = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """List every knob with its value and what it means."""
    from segan.cli.console import print_json, print_table
    from segan.config import Config, iter_fields, load_config

    tree = load_config(config, overrides or []).model_dump(mode="json")
    if as_json:
        print_json(tree)
        return
    rows = [(key, *key.split("."), field.description) for key, field in iter_fields(Config)]
    shown = [[key, json.dumps(tree[section][leaf]), text] for key, section, leaf, text in rows]
    print_table(
        "(P) the paper, (F) its Figure 1, (C) the authors' code, (O) our choice",
        ["key", "value", "meaning"],
        shown,
        left_columns=(0, 2),
    )


def _write_report(settings: Config, uri: str) -> None:
    """The report of what has just ended, if it is wished for."""
    if settings.evaluation.report:
        from segan.cli.console import echo
        from segan.report.write import try_write_report

        try_write_report(uri, echo)


def _show_best_checkpoint(best: Checkpoint, as_json: bool) -> None:
    from segan.cli.console import print_json, print_table

    metrics = {k: v for k, v in best.info["metrics"].items() if k != "jaccard_curve"}
    if as_json:
        print_json({"checkpoint": best.uri, **metrics})
        return
    names = ["epoch", "accuracy", "dice", "jaccard", "threshold"]
    title = f"best of {best.uri.rsplit('/checkpoints/', 1)[0]} on validation"
    print_table(title, ["checkpoint", *names], [[best.name, *(metrics[name] for name in names)]])

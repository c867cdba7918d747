"""Commands that train: a run, or the trials of a hyperparameter search."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segan.cli.commands.options import (
    FOLDER,
    ConfigSource,
    Debug,
    Json,
    Local,
    OverrideArgs,
    StudyArgument,
    join_cluster,
    load_cli_config,
)
from segan.errors import StorageError, UsageError

if TYPE_CHECKING:
    from segan.config import Config
    from segan.runs.checkpoint import Checkpoint
    from segan.runs.run import Run

app = typer.Typer()


@app.command(epilog="segan train ./runs/first --config demo network.width=8")
def train(
    run: Annotated[str, typer.Argument(metavar="RUN", help=f"{FOLDER} for the run.")],
    overrides: OverrideArgs = None,
    config: ConfigSource = None,
    profile: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Write a trace of this many steps to RUN/profile, for Perfetto or Chrome.",
        ),
    ] = 0,
    overfit: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Train on the first N images only, without augmentation, and validate on the "
            "same, to see that the network learns them; with --local.",
        ),
    ] = 0,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train segmentor and critic; repeat the command to resume a stopped run.

    SIGTERM, or Ctrl-C with --local, stops the training after the current step and saves a
    checkpoint.
    """
    from segan import storage
    from segan.cli.console import echo
    from segan.runs.driver_log import keep_driver_log
    from segan.runs.run import Run
    from segan.storage.lease import hold_lease
    from segan.tracking.copy import track_live
    from segan.utils.extras import require_extra
    from segan.utils.text import count_noun

    require_extra("segan train", "train")  # before anything is written
    if overfit and not local:
        raise UsageError("--overfit: it trains in this process; add --local")
    settings, place = load_cli_config(config, overrides), Run(run)
    if overfit:
        from segan.training.overfit import overfit_overrides

        defaults = overfit_overrides(overfit, settings.cluster.workers)
        settings = load_cli_config(config, [*defaults, *(overrides or [])])
    with (
        hold_lease(place.uri),  # before any file of the run is read
        keep_driver_log(place.uri, f"segan train {place}"),
        track_live(settings.tracking, place.uri),
    ):
        if overfit:
            from segan.training.overfit import write_overfit_records

            records = storage.join(place.uri, f"overfit-{overfit}")
            settings = write_overfit_records(settings, records, overfit)
        _train(settings, place, profile, local, debug)
        best = place.best_checkpoint()
        if best is None:
            raise StorageError(f"{place}: finished, but no validated checkpoint can be read")
        _show_best_checkpoint(best, as_json)
        if overfit:
            echo(f"Jaccard {best.jaccard:.3f} on the {count_noun(overfit, 'image')} trained on")
        _write_report(settings, place.uri)


def _train(settings: Config, place: Run, profile: int, local: bool, debug: bool) -> None:
    from segan.cli.console import TrainingDisplay
    from segan.utils.signals import graceful_shutdown

    if local:
        from segan.training.launch import train_local
        from segan.training.trainer import Callbacks

        with (
            graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request,
            TrainingDisplay() as display,
        ):
            callbacks = Callbacks(on_step_end=display, should_stop=stop_request)
            train_local(settings, place, callbacks, num_profiled_steps=profile)
    else:
        from ray_jobs.training.driver import train as train_on_ray
        from segan.training.resume import check_config

        check_config(settings, place)  # fail before joining a cluster
        join_cluster(debug)
        with graceful_shutdown(signal.SIGTERM) as stop_request, TrainingDisplay() as display:
            train_on_ray(
                settings,
                place,
                display,
                stop_request=stop_request,
                num_profiled_steps=profile,
            )


@app.command(epilog="segan tune s3://bucket/studies/first --config demo")
def tune(
    study: StudyArgument,
    overrides: OverrideArgs = None,
    config: ConfigSource = None,
    compare_full: Annotated[
        bool,
        typer.Option(
            "--compare-full",
            help="Then train all trials again without early stopping, in STUDY-full.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search learning rate, weight clip and final k with ASHA, on a Ray cluster.

    Repeat the command to resume a stopped study.
    """
    from ray_jobs.tuning.study import run_study
    from segan.cli.console import echo_validation, print_json
    from segan.cli.tables import show_study
    from segan.runs.driver_log import keep_driver_log
    from segan.runs.study import Study
    from segan.storage.lease import hold_lease
    from segan.tracking.copy import track_live

    settings, place = load_cli_config(config, overrides), Study(study)
    studies = [(place, settings)]
    if compare_full:
        full_config = settings.with_overrides({"search.early_stopping": False})
        studies.append((Study(f"{place.uri}-full"), full_config))

    def on_validation(trial: str, metrics: dict[str, Any], should_continue: bool) -> None:
        last = metrics["epoch"] >= settings.training.epochs
        echo_validation(trial, metrics, "finished" if last else "" if should_continue else "pruned")

    with contextlib.ExitStack() as stack:
        for member, _ in studies:
            stack.enter_context(hold_lease(member.uri))
        stack.enter_context(keep_driver_log(place.uri, f"segan tune {place.uri}"))
        stack.enter_context(track_live(settings.tracking, place.uri))
        join_cluster(debug)
        for member, member_config in studies:
            run_study(member_config, member, on_validation)
        leaderboards = {member.uri: member.write_leaderboard() for member, _ in studies}
        if as_json:
            print_json({uri: [asdict(row) for row in rows] for uri, rows in leaderboards.items()})
        else:
            for uri, rows in leaderboards.items():
                show_study(uri, rows)
        for uri in leaderboards:
            _write_report(settings, uri)
        for member, _ in studies:
            member.require_finished()


@app.command("config", epilog="segan config --config demo network.width=8")
def show_config(
    overrides: OverrideArgs = None,
    config: ConfigSource = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List every configuration key with its value and meaning."""
    from segan.cli.console import print_json, print_table
    from segan.config import Config, format_value, iter_fields, load_config

    tree = load_config(config, overrides or []).model_dump(mode="json")
    if as_json:
        print_json(tree)
        return
    rows = []
    for key, field in iter_fields(Config):
        section, leaf = key.split(".")
        rows.append([key, format_value(tree[section][leaf]), field.description])
    print_table(
        "Source of a default: (P) the paper, (F) its Figure 1, (C) the authors' code, (O) our own",
        ["key", "value", "meaning"],
        rows,
        left_columns=(0, 1, 2),
    )


def _write_report(settings: Config, uri: str) -> None:
    """Writes the report of a finished run or study, unless `evaluation.report` is off."""
    if settings.evaluation.report:
        from segan.cli.console import echo
        from segan.report.write import try_write_report

        try_write_report(uri, echo)


def _show_best_checkpoint(best: Checkpoint, as_json: bool) -> None:
    from segan.cli.console import print_json, print_table
    from segan.cli.score_tables import show_classes

    metrics = {k: v for k, v in best.info.metrics.items() if k != "jaccard_curve"}
    if as_json:
        print_json({"checkpoint": best.uri, **metrics})
        return
    names = ["epoch", "accuracy", "dice", "jaccard", "threshold"]
    title = f"best of {best.uri.rsplit('/checkpoints/', 1)[0]} on validation"
    print_table(title, ["checkpoint", *names], [[best.name, *(metrics[name] for name in names)]])
    show_classes(metrics)

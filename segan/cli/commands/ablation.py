"""The ablation command: trains variants and compares them with a baseline."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from typing import Any

import typer

from segan.cli.commands.options import (
    ConfigFile,
    Debug,
    Json,
    Local,
    OverrideArgs,
    StudyArgument,
    join_cluster,
    load_cli_config,
)
from segan.errors import SeganError

app = typer.Typer()


@app.command(epilog="segan ablate s3://b/studies/claims --config ray_jobs/configs/ablation.yaml")
def ablate(
    study: StudyArgument,
    overrides: OverrideArgs = None,
    config: ConfigFile = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every variant with every seed and compare the variants with the baseline.

    The variants are those of the config's `ablation` section. Repeat the command to resume a
    stopped study, or to add seeds or variants to it.
    """
    from segan.cli.console import echo, echo_validation, print_json
    from segan.cli.tables import show_ablation
    from segan.data.records.format import read_manifest
    from segan.evaluation.compare import compare_variants
    from segan.runs.ablation import prepare_trials, trial_overrides
    from segan.runs.driver_log import keep_driver_log
    from segan.runs.study import Study
    from segan.runs.trial import TrialStatus
    from segan.storage.lease import hold_lease
    from segan.tracking.copy import track_live
    from segan.training.launch import train_all_local
    from segan.utils.signals import graceful_shutdown

    settings, place = load_cli_config(config, overrides), Study(study)
    num_trials = len(trial_overrides(settings))  # refuses invalid variants before any other work

    def on_validation(trial: str, metrics: dict[str, Any], should_continue: bool) -> None:
        echo_validation(trial, metrics)

    with contextlib.ExitStack() as stack:
        with hold_lease(place.uri):
            stack.enter_context(keep_driver_log(place.uri, f"segan ablate {place.uri}"))
            stack.enter_context(track_live(settings.tracking, place.uri))
            if local:
                fingerprint = read_manifest(settings.data.records).fingerprint
                trials = prepare_trials(settings, place, fingerprint)
                with graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request:
                    train_all_local(settings, trials, on_validation, stop_request)
            else:
                from ray_jobs.tuning.ablation import run_ablation

                join_cluster(debug)
                run_ablation(settings, place, on_validation)
            report = compare_variants(settings, place, echo)
        if as_json:
            print_json(dataclasses.asdict(report))
        else:
            show_ablation(report)
    incomplete = (TrialStatus.FAILED, TrialStatus.UNFINISHED)
    failed = [run for run in report.runs if run.status in incomplete]
    if failed:
        first = f"{failed[0].trial} {failed[0].status}"
        reason = f": {failed[0].reason}" if failed[0].reason else ""
        raise SeganError(
            f"{place.uri}: {len(failed)} of {num_trials} trials failed or are unfinished "
            f"({first}{reason}); run the same command again to train them"
        )

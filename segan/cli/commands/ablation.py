"""The ablation command: trains variants and compares them with a baseline."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import typer

from segan.cli.commands.options import (
    ConfigSource,
    Debug,
    Json,
    Local,
    OverrideArgs,
    StudyArgument,
    join_cluster,
    load_cli_config,
)

app = typer.Typer()


@app.command(epilog="segan ablate s3://b/studies/claims --config ablation")
def ablate(
    study: StudyArgument,
    overrides: OverrideArgs = None,
    config: ConfigSource = None,
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
    from segan.data.records.versions import read_version
    from segan.evaluation.compare import compare_variants
    from segan.runs.ablation import prepare_trials, trial_overrides
    from segan.runs.driver_log import keep_driver_log
    from segan.runs.study import Study
    from segan.storage.lease import hold_lease
    from segan.tracking.copy import track_live
    from segan.training.device import resolve_local_device, resolve_performance
    from segan.training.launch import train_all_local
    from segan.utils.signals import graceful_shutdown

    settings, place = load_cli_config(config, overrides), Study(study)
    names = trial_overrides(settings).keys()  # refuses invalid variants before any other work

    def on_validation(trial: str, metrics: dict[str, Any], should_continue: bool) -> None:
        echo_validation(trial, metrics)

    with (
        hold_lease(place.uri),
        keep_driver_log(place.uri, f"segan ablate {place.uri}"),
        track_live(settings.tracking, place.uri),
    ):
        if local:
            device = resolve_local_device(settings.cluster).device
            settings = resolve_performance(settings, device, place.recorded_identity())
            manifest = read_version(settings.data.records, place.fingerprint())
            trials = prepare_trials(settings, place, manifest.fingerprint)
            with graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request:
                train_all_local(settings, trials, on_validation, stop_request, manifest.fingerprint)
        else:
            from ray_jobs.tuning.ablation import run_ablation

            join_cluster(debug)
            run_ablation(settings, place, on_validation)
        report = compare_variants(settings, place, echo)
        if as_json:
            print_json(dataclasses.asdict(report))
        else:
            show_ablation(report)
        place.require_finished(names)

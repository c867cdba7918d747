"""The command that tries claims: variants beside each other, with intervals."""

from __future__ import annotations

import signal
from typing import Annotated, Any

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
from segan.errors import SeganError

app = typer.Typer()


@app.command(epilog="segan ablate s3://b/studies/claims --config ray_jobs/configs/ablation.yaml")
def ablate(
    study: Annotated[str, typer.Argument(help="Folder or s3:// prefix of the study.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    local: Local = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train every variant with every seed and set them beside the baseline.

    A study that was stopped goes on; with more seeds or variants, what is missing is trained.
    """
    from segan.ablation import begin, points, train_all_here
    from segan.commands.tables import show_ablation
    from segan.data.records import read_manifest
    from segan.evaluation.compare import compare
    from segan.interrupts import stoppable
    from segan.lease import hold
    from segan.search import Study
    from segan.terminal import answer, say

    settings, place = load_settings(config, overrides), Study(study)
    named = points(settings)  # a variant that is none is said before anything else

    def tell(trial: str, metrics: dict[str, Any], go_on: bool) -> None:
        say(f"{trial}  epoch {metrics['epoch']}  Jaccard {metrics['jaccard']:.3f}")

    with hold(place.uri):
        if local:
            trials = begin(settings, place, read_manifest(settings.data.records).fingerprint)
            with stoppable(signal.SIGINT, signal.SIGTERM) as wish:
                train_all_here(settings, trials, tell, wish)
        else:
            from ray_jobs.ablate import ablate as ablate_on_ray

            join_cluster(debug)
            ablate_on_ray(settings, place, tell)
        report = compare(settings, place, say)
    if as_json:
        answer(report)
    else:
        show_ablation(report)
    failed = [run for run in report["runs"] if run["why"].startswith(("failed", "not over"))]
    if failed:
        raise SeganError(
            f"{place.uri}: {len(failed)} of {len(named)} runs are not done, as "
            f"{failed[0]['trial']} ({failed[0]['why']}); the same command tries them again"
        )

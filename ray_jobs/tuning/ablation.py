"""An ablation with Ray Tune: every variant with every seed is a Ray Train run of full length."""

from __future__ import annotations

from ray_jobs.tuning.study import OnValidation, prepare_config, run_trials
from segan.config import Config
from segan.data.records.versions import read_version
from segan.runs.ablation import prepare_trials
from segan.runs.study import Study


def run_ablation(config: Config, study: Study, on_validation: OnValidation) -> None:
    """Trains the runs that have not ended, as many at once as fit the cluster.

    Args:
        on_validation: called with the trial's name, its metrics, and True.

    Raises:
        UsageError: the configuration fits neither the records, the study nor the cluster.
    """
    config, capacity = prepare_config(config, study)
    manifest = read_version(config.data.records, study.fingerprint())
    trials = prepare_trials(config, study, manifest.fingerprint)
    # The trials are given and run to their end, whatever the config says about a search.
    config = config.with_overrides({"search.early_stopping": False, "search.algorithm": "random"})
    run_trials(config, study, trials, on_validation, capacity)

"""An ablation with Ray Tune: every variant with every seed is a Ray Train run, taken to its end.

ray job submit --working-dir . -- python -m ray_jobs.ablate s3://bucket/studies/claims --config ...
"""

from __future__ import annotations

from ray_jobs.cluster.capacity import TRIAL_ACTOR_CPUS, max_concurrent_runs
from ray_jobs.tuning.study import OnValidation, run_trials
from segan.config import Config
from segan.data.records.format import read_manifest
from segan.runs.ablation import prepare_trials
from segan.runs.study import Study


def run_ablation(config: Config, study: Study, on_validation: OnValidation) -> None:
    """Trains what is not over yet, as many runs at once as the cluster holds.

    Args:
        tell: is given each validation: the trial's name, its metrics, and that it goes on.

    Raises:
        UsageError: the configuration fits neither the records, the study nor the cluster.
    """
    capacity = max_concurrent_runs(config.cluster, TRIAL_ACTOR_CPUS)
    trials = prepare_trials(config, study, read_manifest(config.data.records).fingerprint)
    # Without early stopping the search's own options have no part in it.
    search_config = config.search.model_copy(
        update={"early_stopping": False, "algorithm": "random"}
    )
    run_trials(
        config.model_copy(update={"search": search_config}), study, trials, on_validation, capacity
    )

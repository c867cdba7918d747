"""An ablation with Ray Tune: every variant with every seed is a Ray Train run, taken to its end.

ray job submit --working-dir . -- python -m ray_jobs.ablate s3://bucket/studies/claims --config ...
"""

from __future__ import annotations

import sys

from ray_jobs.capacity import TRIAL_CPUS, runs_at_once
from ray_jobs.tune import Tell, run_trials
from segan.ablation import begin
from segan.config import Config
from segan.data.records import read_manifest
from segan.search import Study


def ablate(config: Config, study: Study, tell: Tell) -> None:
    """Trains what is not over yet, as many runs at once as the cluster holds.

    Args:
        tell: is given each validation: the trial's name, its metrics, and that it goes on.

    Raises:
        UsageError: the configuration fits neither the records, the study nor the cluster.
    """
    held = runs_at_once(config.cluster, TRIAL_CPUS)
    trials = begin(config, study, read_manifest(config.data.records).fingerprint)
    # Without early stopping the search's own options have no part in it.
    whole = config.search.model_copy(update={"early_stopping": False, "method": "random"})
    run_trials(config.model_copy(update={"search": whole}), study, trials, tell, held)


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["ablate", *sys.argv[1:]]))

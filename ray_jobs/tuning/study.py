"""A study with Ray Tune: each trial is a Ray Train run, and ASHA prunes the poor ones."""

from __future__ import annotations

import functools
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from ray_jobs.cluster.capacity import (
    TRIAL_ACTOR_CPUS,
    cluster_has_gpu,
    max_concurrent_runs,
    num_worker_nodes,
    resolve_cluster_device,
)
from ray_jobs.cluster.queue import wait_for_turn
from ray_jobs.cluster.ray_internals import TUNE_PROPAGATED_VARIABLES
from ray_jobs.cluster.ray_storage import ray_storage
from ray_jobs.training.driver import train
from ray_jobs.tuning.optuna import StudyOptunaSearch
from ray_jobs.tuning.scheduler import CooperativeASHAScheduler, decision_publisher
from segan import storage
from segan.config import Config
from segan.data.records.versions import read_version
from segan.errors import NonFiniteError, SeganError, UsageError
from segan.runs.driver_log import keep_driver_log
from segan.runs.study import Study
from segan.runs.trial import Trial, TrialStatus
from segan.runs.warm_start import find_initial_weights
from segan.storage.lease import current_fence, hold_lease
from segan.training.device import announce_device, resolve_performance

OnValidation = Callable[[str, dict[str, Any], bool], None]

logger = logging.getLogger(__name__)


def run_study(config: Config, study: Study, on_validation: OnValidation) -> None:
    """Runs the trials of a study that have not ended, as many at once as fit the cluster.

    Trials that still fail after `cluster.max_failures` further attempts are left unfinished.

    Args:
        on_validation: called with the trial's name, its metrics and whether it continues.

    Raises:
        UsageError: the configuration fits neither the records, the study nor the cluster, or
            another process runs this study.
    """
    with hold_lease(study.uri):
        config, capacity = prepare_config(config, study)
        manifest = read_version(config.data.records, study.fingerprint())
        trials = study.create_or_resume(config, manifest.fingerprint)
        run_trials(config, study, trials, on_validation, capacity)


def prepare_config(config: Config, study: Study) -> tuple[Config, int]:
    """Resolves the device and the precision that `auto` stands for, and says which they are.

    Says also which weights the trials of a new study take from `training.init`.

    Returns:
        The configuration with the precision that all trials have, and the number of runs that fit
        the cluster at once.
    """
    if not study.recorded_identity() and (initial := find_initial_weights(config)):
        logger.info(initial.describe())
    cluster = resolve_cluster_device(config.cluster)
    capacity = max_concurrent_runs(cluster, TRIAL_ACTOR_CPUS)
    config = resolve_performance(config, cluster.device, study.recorded_identity())
    announce_device(cluster, config.performance, cluster_has_gpu())
    return config, capacity


def run_trials(
    config: Config, study: Study, trials: list[Trial], on_validation: OnValidation, capacity: int
) -> None:
    """Runs the trials that have not ended.

    Args:
        capacity: the number of runs that fit the cluster at once.
    """
    search, epochs = config.search, config.training.epochs
    with decision_publisher() as publisher:
        scheduler = CooperativeASHAScheduler(
            publisher,
            on_validation,
            max_epochs=epochs,
            # Without early stopping the first rung is the last epoch.
            grace_period=min(search.grace_period, epochs) if search.early_stopping else epochs,
            reduction_factor=search.reduction_factor,
        )
        unfinished = []
        results = storage.map_in_threads(Trial.result, trials)
        epoch_metrics = storage.map_in_threads(Trial.epoch_metrics, trials)
        for trial, result, validated in zip(trials, results, epoch_metrics, strict=True):
            continues = scheduler.replay(trial.name, validated)
            if result.has_ended:
                continue
            if continues:
                unfinished.append(trial.name)
            else:  # the driver ended after the decision and before the trial noticed it
                _mark_done(trial, epochs, 0.0)
        max_concurrent_trials = min(capacity, search.max_concurrent_trials or capacity)
        _run_tuner(
            config, study, trials, unfinished, scheduler, publisher.actor, max_concurrent_trials
        )


def _run_tuner(
    config: Config,
    study: Study,
    trials: list[Trial],
    unfinished: list[str],
    scheduler: CooperativeASHAScheduler,
    decisions: Any,
    max_concurrent_trials: int,
) -> None:
    param_space, tune_options = _param_space(config, study, trials, unfinished)
    if tune_options["num_samples"] == 0:
        return
    cluster = resolve_cluster_device(config.cluster)
    wait_for_turn(cluster, study.uri, timeout_s=cluster.resource_timeout_s)
    trial_context = {
        "fence": current_fence(study.uri),
        "fingerprint": study.fingerprint(),
        "decisions": decisions,
        "runs_per_node": math.ceil(max_concurrent_trials / num_worker_nodes()),
    }
    run = functools.partial(_run_trial, config=config, study=study.uri, trial_context=trial_context)
    # Credentials would become part of each trial's runtime environment.
    propagated = TUNE_PROPAGATED_VARIABLES.load()
    propagated -= {name for name in os.environ if name.startswith("AWS_")}
    # Tune's newer output prints a header and a footer to stdout, whatever `verbose` says.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune's own handler would end the study as if it were complete.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    tune.Tuner(
        tune.with_resources(run, {"CPU": TRIAL_ACTOR_CPUS}),  # its workers reserve the rest
        param_space=param_space,
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=max_concurrent_trials,
            **tune_options,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%dT%H%M%S"),
            **ray_storage(storage.join(study.uri, "tune")),
            verbose=0,
            # A trial whose process or node is lost, or whose storage fails, is started again.
            failure_config=tune.FailureConfig(max_failures=config.cluster.max_failures),
        ),
    ).fit()


def _param_space(
    config: Config, study: Study, trials: list[Trial], unfinished: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tune's `param_space` and TuneConfig options: a grid of the unfinished trials, or Optuna."""
    if config.search.algorithm != "optuna":
        return {"trial": tune.grid_search(unfinished)}, {"num_samples": min(1, len(unfinished))}
    num_samples = config.search.trials - len(trials) + len(unfinished)
    search_alg = StudyOptunaSearch(study, config.search, trials)
    return {}, {"num_samples": num_samples, "search_alg": search_alg}


def _run_trial(
    params: dict[str, Any], config: Config, study: str, trial_context: dict[str, Any]
) -> None:
    """The function of a trial's actor: one training, whose reports are passed to Tune.

    Only numbers that are not finite are a verdict on the trial's parameters. Any other error leaves
    the trial to another attempt: of Tune, or of the same command given again.
    """
    trial = Study(study, trial_context["fence"]).get_trial(params["trial"])
    began = time.monotonic()
    trial_config = trial.build_config(config)
    full_context = {"trial": trial.name, **trial_context}
    if ray.get(trial_context["decisions"].is_stopped.remote(trial.name)):
        _mark_done(trial, trial_config.training.epochs, 0.0)
        return
    if trial.result().status is TrialStatus.FAILED:
        trial.clear_result()
    try:
        with keep_driver_log(trial.run.uri, f"{trial.name} of {study}"):
            train(trial_config, trial.run, lambda _: None, full_context, [TuneReportCallback()])
    except NonFiniteError as error:
        trial.mark_done(TrialStatus.DIVERGED, time.monotonic() - began, str(error))
        return
    except SeganError as error:
        trial.mark_done(TrialStatus.FAILED, time.monotonic() - began, str(error))
        if isinstance(error, UsageError):
            return  # another attempt of this command would end in the same way
        raise  # Tune starts the trial again
    _mark_done(trial, trial_config.training.epochs, time.monotonic() - began)


def _mark_done(trial: Trial, epochs: int, seconds: float) -> None:
    """Records that a validated trial has finished or was pruned."""
    epoch_rows = trial.epoch_metrics()
    last, best = epoch_rows[-1]["epoch"], max(row["jaccard"] for row in epoch_rows)
    if last >= epochs:
        trial.mark_done(TrialStatus.FINISHED, seconds)
    else:
        trial.mark_done(TrialStatus.PRUNED, seconds, f"after epoch {last}")
    hyperparameters = {
        k: v if isinstance(v, int | float) else str(v) for k, v in trial.parameters.items()
    }
    # Here, so that processes in which no trial ends do not import TensorBoard.
    from segan.training.metrics_log import write_hyperparameters

    write_hyperparameters(trial.run, hyperparameters, {"jaccard": best})

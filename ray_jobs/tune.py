"""A study with Ray Tune: each trial is the Ray Train run of `ray_jobs.train`, ASHA stops the poor.

ray job submit --working-dir . -- python -m ray_jobs.tune s3://bucket/studies/first --config ...
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.execution import class_cache
from ray.tune.integration.ray_train import TuneReportCallback

from ray_jobs.asha import AskingASHA, judging
from ray_jobs.capacity import TRIAL_CPUS, nodes_with_work, runs_at_once
from ray_jobs.suggest import Suggesting
from ray_jobs.train import train
from segan import storage
from segan.config import Config
from segan.data.records import read_manifest
from segan.errors import NotFiniteError, SeganError, StoppedError
from segan.lease import hold
from segan.search import Study, Trial, best_epoch
from segan.training.log import write_hyperparameters

Tell = Callable[[str, dict[str, Any], bool], None]


def search(config: Config, study: Study, tell: Tell) -> None:
    """Runs every trial of a study that is not over yet, as many at once as the cluster holds.

    Args:
        tell: is given each validation: the trial's name, its metrics, and whether it goes on.

    Raises:
        UsageError: the configuration fits neither the records, the study nor the cluster, or
            another process runs this study.
    """
    with hold(study.uri):
        _search(config, study, tell)


def _search(config: Config, study: Study, tell: Tell) -> None:
    held = runs_at_once(config.cluster, TRIAL_CPUS)
    trials = study.begin(config, read_manifest(config.data.records).fingerprint)
    run_trials(config, study, trials, tell, held)


def run_trials(config: Config, study: Study, trials: list[Trial], tell: Tell, held: int) -> None:
    """Runs those of a study's trials that are not over.

    Args:
        held: runs that the cluster holds at once.
    """
    with judging() as judge:
        scheduler = _scheduler(config, judge, tell)
        for trial in trials:
            goes_on = scheduler.replay(trial)
            if trial.result() is None and not goes_on:
                # The driver died between the word and the trial's hearing it.
                _finish(trial, config.training.epochs, 0.0)
        at_once = min(held, config.search.concurrent or held)
        _tune(config, study, trials, scheduler, judge, at_once)


def _tune(
    config: Config,
    study: Study,
    trials: list[Trial],
    scheduler: AskingASHA,
    judge: Any,
    at_once: int,
) -> None:
    left = [trial.name for trial in trials if trial.result() is None]
    points, how = _points(config, study, trials, left)
    if how["num_samples"] == 0:
        return
    words = {"judge": judge, "runs_here": math.ceil(at_once / nodes_with_work())}
    run = functools.partial(_run, config=config, study=study.uri, words=words)
    # Tune would put the keys into each trial's runtime environment, which Ray logs and shows.
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in os.environ if name.startswith("AWS_")}
    # Tune's newer output prints a header and a footer to stdout, whatever `verbose` says.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Tune would take an interrupt as the study's orderly end; the study goes on when asked again.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    tune.Tuner(
        tune.with_resources(run, {"CPU": TRIAL_CPUS}),  # the workers of its run hold the rest
        param_space=points,
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=at_once,
            **how,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%dT%H%M%S"),
            storage_path=storage.join(study.uri, "tune"),
            verbose=0,
        ),
    ).fit()


def _points(
    config: Config, study: Study, trials: list[Trial], left: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What Tune takes trials from: the names of those that are left, or Optuna."""
    if config.search.method != "optuna":
        return {"trial": tune.grid_search(left)}, {"num_samples": min(1, len(left))}
    more = config.search.trials - len(trials) + len(left)
    suggesting = Suggesting(study, config.search, trials)
    return {}, {"num_samples": more, "search_alg": suggesting}


def _scheduler(config: Config, judge: Any, tell: Tell) -> AskingASHA:
    search, epochs = config.search, config.training.epochs
    return AskingASHA(
        judge,
        tell,
        max_t=epochs,
        # Without early stopping the first rung is the last epoch.
        grace_period=min(search.grace_period, epochs) if search.early_stopping else epochs,
        reduction_factor=search.reduction_factor,
    )


def _run(point: dict[str, Any], config: Config, study: str, words: dict[str, Any]) -> None:
    """What a trial's actor does: one training, its reports passed on to Tune."""
    trial, began = Study(study).trial(point["trial"]), time.monotonic()
    settings = trial.configure(config)
    named = {"trial": trial.name, **words}
    try:
        train(settings, trial.run, lambda status: None, named, [TuneReportCallback()])
    except StoppedError:
        raise  # neither failed nor given up: it is not over
    except NotFiniteError as error:
        trial.finish(f"diverged: {error}", time.monotonic() - began)
        return
    except SeganError as error:
        trial.finish(f"failed: {error}", time.monotonic() - began)
        raise
    _finish(trial, settings.training.epochs, time.monotonic() - began)


def _finish(trial: Trial, epochs: int, seconds: float) -> None:
    done = trial.epochs()
    last, best = done[-1]["epoch"], best_epoch(done)
    trial.finish("finished" if last >= epochs else f"given up after epoch {last}", seconds)
    assert best is not None, "a trial that is over has been validated"
    point = {k: v if isinstance(v, int | float) else str(v) for k, v in trial.parameters.items()}
    write_hyperparameters(trial.run, point, {"jaccard": best["jaccard"]})


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["tune", *sys.argv[1:]]))

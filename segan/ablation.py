"""Variants of one configuration beside each other, each with several seeds: what is trained.

An ablation is a study whose trials are named, <variant>-seed<n>, and which may grow: with more
seeds or variants, the same command trains what is missing. Needs no Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from segan.config import Config, parse_config
from segan.errors import NotFiniteError, UsageError
from segan.search import Study, Trial
from segan.studies import Overrides

FIXED = ("data", "cluster", "search", "ablation")  # the same for all, or there is no comparing
SEED = "training.seed"

Tell = Callable[[str, dict[str, Any], bool], None]


def begin(config: Config, study: Study, fingerprint: str) -> list[Trial]:
    """The trials of all variants and seeds, those that failed before to be tried again.

    Raises:
        UsageError: a variant is none, or the study is of another configuration or other records.
    """
    trials = study.begin(config, fingerprint, points(config))
    for trial in trials:
        if (trial.result() or {"why": ""})["why"].startswith("failed"):
            trial.forget()
    return trials


def points(config: Config) -> dict[str, Overrides]:
    """What each trial overrides, by its name: every variant with one seed, then with the next.

    Raises:
        UsageError: there is no variant, or one changes what it may not.
    """
    ablation, first = config.ablation, config.training.seed
    if not ablation.variants:
        raise UsageError(
            "ablation.variants: expected variants to compare, found none; see "
            "ray_jobs/configs/ablation.yaml"
        )
    for name, overrides in ablation.variants.items():
        _apply(config, name, overrides, ())
    for name, overrides in ablation.evaluations.items():
        evaluated(config, name, overrides)
    return {
        trial_name(name, seed): {**overrides, SEED: seed}
        for seed in range(first, first + ablation.seeds)
        for name, overrides in ablation.variants.items()
    }


def trial_name(variant: str, seed: int) -> str:
    return f"{variant}-seed{seed}"


def evaluated(config: Config, name: str, overrides: Overrides) -> Config:
    """The configuration with an evaluation's overrides; raises UsageError for any other's."""
    return _apply(config, name, overrides, ("evaluation",))


def _apply(config: Config, name: str, overrides: Overrides, only: tuple[str, ...]) -> Config:
    tree = config.model_dump()
    for key, value in overrides.items():
        section, _, leaf = key.partition(".")
        if not leaf or section in FIXED or key == SEED or (only and section not in only):
            expected = f"{only[0]}.key" if only else f"section.key, but none of {', '.join(FIXED)}"
            raise UsageError(f"ablation {name}: {key} is not its to change; expected {expected}")
        tree.setdefault(section, {})[leaf] = value
    try:
        return parse_config(tree)
    except UsageError as error:
        raise UsageError(f"ablation {name}: {error}") from None


def train_all_here(
    config: Config, trials: list[Trial], tell: Tell, stop: Callable[[], bool]
) -> None:
    """Trains what is not over yet in this process, one after another.

    Args:
        tell: is given each validation: the trial's name, its metrics, and that it goes on.
        stop: whether somebody wishes an end.

    Raises:
        StoppedError: the wish was followed; the trial under way has a checkpoint.
    """
    from segan.training.loop import Watchers
    from segan.training.session import train_here

    for trial in trials:
        if trial.result() is not None:
            continue

        def report(metrics: dict[str, Any], name: str = trial.name) -> bool:
            tell(name, metrics, True)
            return True

        began, why = time.monotonic(), "finished"
        try:
            train_here(trial.configure(config), trial.run, Watchers(report=report, stop=stop))
        except NotFiniteError as error:
            why = f"diverged: {error}"
        trial.finish(why, time.monotonic() - began)

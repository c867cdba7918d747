"""Variants of one configuration beside each other, each with several seeds: what is trained.

An ablation is a study whose trials are named, <variant>-seed<n>, and which may grow: with more
seeds or variants, the same command trains what is missing. Needs no Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segan.config import Config
from segan.config.search import Overrides
from segan.errors import UsageError
from segan.runs.study import Study, Trial

FIXED_SECTIONS = (
    "data",
    "cluster",
    "search",
    "ablation",
)  # the same for all, or there is no comparing
SEED_KEY = "training.seed"

OnValidation = Callable[[str, dict[str, Any], bool], None]


def prepare_trials(config: Config, study: Study, fingerprint: str) -> list[Trial]:
    """The trials of all variants and seeds, those that failed before to be tried again.

    Raises:
        UsageError: a variant is none, or the study is of another configuration or other records.
    """
    trials = study.create_or_resume(config, fingerprint, trial_overrides(config))
    for trial in trials:
        if (trial.result() or {"why": ""})["why"].startswith("failed"):
            trial.clear_result()
    return trials


def trial_overrides(config: Config) -> dict[str, Overrides]:
    """What each trial overrides, by its name: every variant with one seed, then with the next.

    Raises:
        UsageError: there is no variant, or one changes what it may not.
    """
    ablation, first_seed = config.ablation, config.training.seed
    if not ablation.variants:
        raise UsageError(
            "ablation.variants: expected variants to compare, found none; see "
            "ray_jobs/configs/ablation.yaml"
        )
    for name, overrides in ablation.variants.items():
        _with_overrides(config, name, overrides, ())
    for name, overrides in ablation.evaluations.items():
        evaluation_config(config, name, overrides)
    return {
        trial_name(name, seed): {**overrides, SEED_KEY: seed}
        for seed in range(first_seed, first_seed + ablation.seeds)
        for name, overrides in ablation.variants.items()
    }


def trial_name(variant: str, seed: int) -> str:
    return f"{variant}-seed{seed}"


def evaluation_config(config: Config, name: str, overrides: Overrides) -> Config:
    """The configuration with an evaluation's overrides; raises UsageError for any other's."""
    return _with_overrides(config, name, overrides, ("evaluation",))


def _with_overrides(
    config: Config, name: str, overrides: Overrides, allowed_sections: tuple[str, ...]
) -> Config:
    for key in overrides:
        section, _, leaf = key.partition(".")
        if (
            not leaf
            or section in FIXED_SECTIONS
            or key == SEED_KEY
            or (allowed_sections and section not in allowed_sections)
        ):
            expected = (
                f"{allowed_sections[0]}.key"
                if allowed_sections
                else f"section.key, but none of {', '.join(FIXED_SECTIONS)}"
            )
            raise UsageError(f"ablation {name}: {key} is not its to change; expected {expected}")
    try:
        return config.with_overrides(overrides)
    except UsageError as error:
        raise UsageError(f"ablation {name}: {error}") from None

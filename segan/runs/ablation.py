"""The trials of an ablation: every variant of a configuration with every seed.

An ablation is a study whose trials are named <variant>-seed<n>. With more seeds or variants the
same command trains the missing trials. Imports no Ray.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segan.config import Config
from segan.config.search import Overrides
from segan.errors import UsageError
from segan.runs.study import Study
from segan.runs.trial import Trial

FIXED_SECTIONS = ("data", "cluster", "tracking", "search", "ablation")  # equal in all variants
SEED_KEY = "training.seed"

# Called with a trial's name, the metrics of a validated epoch and whether the trial continues.
OnValidation = Callable[[str, dict[str, Any], bool], None]


def prepare_trials(config: Config, study: Study, fingerprint: str) -> list[Trial]:
    """The trials of all variants and seeds.

    Raises:
        UsageError: a variant is invalid, or the study has another configuration or other records.
    """
    return study.create_or_resume(config, fingerprint, trial_overrides(config))


def trial_overrides(config: Config) -> dict[str, Overrides]:
    """Each trial's overrides by its name: all variants with the first seed, then with the next.

    Raises:
        UsageError: there is no variant, or one overrides a key that it must not.
    """
    ablation, first_seed = config.ablation, config.training.seed
    if not ablation.variants:
        raise UsageError(
            "ablation.variants: expected variants to compare, found none; --config ablation has "
            "all that this project compares"
        )
    for name, overrides in ablation.variants.items():
        _with_overrides(config, name, overrides)
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
    """The configuration with overrides of `evaluation.*`; raises UsageError for other keys."""
    return _with_overrides(config, name, overrides, only_section="evaluation")


def _with_overrides(
    config: Config, name: str, overrides: Overrides, only_section: str = ""
) -> Config:
    expected = f"section.key, but not of {', '.join(FIXED_SECTIONS)}"
    if only_section:
        expected = f"{only_section}.key"
    for key in overrides:
        section, _, leaf = key.partition(".")
        is_fixed = section in FIXED_SECTIONS or key == SEED_KEY
        if not leaf or is_fixed or section != (only_section or section):
            raise UsageError(f"ablation {name}: {key} cannot be overridden; expected {expected}")
    try:
        return config.with_overrides(overrides)
    except UsageError as error:
        raise UsageError(f"ablation {name}: {error}") from None

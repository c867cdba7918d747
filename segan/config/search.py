"""The sections of a study, which a single run ignores: `search` and `ablation`."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from segan.config.base import FrozenConfig

Overrides = dict[str, Any]  # values by `section.key`
VARIANT_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # also the name of a folder


class SearchConfig(FrozenConfig):
    """Hyperparameter search: the search space, and when a trial is stopped early.

    The threshold needs no trials: each validation sweeps all of them.
    """

    algorithm: Literal["random", "grid", "optuna"] = Field(
        "random",
        description="`random` points, the `grid` of all final_k (P), or `optuna`.",
    )
    trials: int = Field(8, ge=1, description="Number of trials; `grid` has one per final_k.")
    learning_rate: tuple[float, float] = Field(
        (0.0005, 0.01), description="Lowest and highest value, log-uniform."
    )
    weight_clip: tuple[float, float] = Field(
        (0.01, 0.1), description="Lowest and highest value, log-uniform."
    )
    final_k: tuple[float, ...] = Field(
        (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), min_length=1, description="Values to choose from."
    )
    seed: int = Field(0, ge=0, description="Seed of the sampled points.")
    early_stopping: bool = Field(
        True, description="Stop poor trials early, by ASHA on validation Jaccard."
    )
    grace_period: int = Field(1, ge=1, description="Epochs before a trial can be stopped.")
    reduction_factor: float = Field(
        4, gt=1, description="ASHA promotes one trial in this many at each rung."
    )
    max_concurrent_trials: int = Field(
        0,
        ge=0,
        description="Trials that run at the same time; 0 runs as many as the cluster can hold.",
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> SearchConfig:
        for name in ("learning_rate", "weight_clip"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"{name} [{low}, {high}]: expected two positive numbers, the smaller first"
                )
        if min(self.final_k) <= 0:
            raise ValueError(f"final_k {list(self.final_k)}: expected positive numbers")
        return self


class AblationConfig(FrozenConfig):
    """Comparison of variants of one configuration, each trained with several seeds.

    A variant is a set of overrides, as `{loss.reduction: per_level}`. An evaluation overrides
    `evaluation.*` and is applied to the baseline's runs without training.
    """

    baseline: str = Field("paper", description="Variant that all others are compared with.")
    seeds: int = Field(
        3, ge=1, description="Runs of each variant, with seeds from training.seed upwards."
    )
    divergence_threshold: float = Field(
        0.35,
        ge=0,
        le=1,
        description="A run whose last validation Jaccard is below this value counts as diverged.",
    )
    variants: dict[str, Overrides] = Field(
        {}, description="Overrides of each variant by its name: values by section.key."
    )
    evaluations: dict[str, Overrides] = Field(
        {}, description="Overrides of evaluation.* for the baseline's runs, by name."
    )

    @model_validator(mode="after")
    def _check_names(self) -> AblationConfig:
        for name in (*self.variants, *self.evaluations):
            if not VARIANT_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r}: a variant's name is lower-case letters, digits and single dashes"
                )
        if self.variants and self.baseline not in self.variants:
            raise ValueError(
                f"baseline {self.baseline!r}: expected a variant, one of {', '.join(self.variants)}"
            )
        if both := sorted({*self.variants} & {*self.evaluations}):
            raise ValueError(f"{both[0]!r} names both a variant and an evaluation; use two names")
        return self

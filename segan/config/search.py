"""The knobs of a study, which a run takes no notice of: what is searched, and what is compared."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from segan.config.base import FrozenConfig

Overrides = dict[str, Any]  # values by `section.key`
VARIANT_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # of a variant, which becomes a folder's


class SearchConfig(FrozenConfig):
    """A study: what is searched, and how soon a trial is given up. Runs take no notice of it.

    The threshold is searched too, over all of them and exactly, by each trial's validations.
    """

    algorithm: Literal["random", "grid", "optuna"] = Field(
        "random",
        description="Points drawn at random, the grid of every final_k (P), or Optuna's.",
    )
    trials: int = Field(8, ge=1, description="Points drawn; a grid has as many as it has.")
    learning_rate: tuple[float, float] = Field(
        (0.0005, 0.01), description="Least and most, log-uniform."
    )
    weight_clip: tuple[float, float] = Field(
        (0.01, 0.1), description="Least and most, log-uniform."
    )
    final_k: tuple[float, ...] = Field(
        (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), min_length=1, description="Values to choose from."
    )
    seed: int = Field(0, ge=0, description="The points are a function of it.")
    early_stopping: bool = Field(True, description="ASHA on validation Jaccard; else none.")
    grace_period: int = Field(1, ge=1, description="Epochs before a trial can be given up.")
    reduction_factor: float = Field(4, gt=1, description="One of so many goes on at a rung.")
    max_concurrent_trials: int = Field(
        0, ge=0, description="Trials at a time; 0 for what the cluster holds."
    )

    @model_validator(mode="after")
    def _check_ranges(self) -> SearchConfig:
        for name in ("learning_rate", "weight_clip"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"{name} [{low}, {high}]: expected two positive numbers, the lesser first"
                )
        if min(self.final_k) <= 0:
            raise ValueError(f"final_k {list(self.final_k)}: expected positive numbers")
        return self


class AblationConfig(FrozenConfig):
    """A comparison: variants of one configuration, each trained with several seeds.

    A variant is a set of overrides, as `{loss.reduction: per_level}`; an evaluation one of
    `evaluation.*`, and is of the baseline's runs as they are.
    """

    baseline: str = Field("paper", description="The variant that each other is set beside.")
    seeds: int = Field(3, ge=1, description="Runs of each variant, with training.seed on upwards.")
    divergence_threshold: float = Field(
        0.35, ge=0, le=1, description="A run whose last validation Jaccard is below it diverged."
    )
    variants: dict[str, Overrides] = Field(
        {}, description="Overrides of each variant, by name; values by section.key."
    )
    evaluations: dict[str, Overrides] = Field(
        {}, description="Overrides of evaluation.* for the baseline's runs, by name."
    )

    @model_validator(mode="after")
    def _check_names(self) -> AblationConfig:
        for name in (*self.variants, *self.evaluations):
            if not VARIANT_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r}: a variant's name is of small letters, digits and single dashes"
                )
        if self.variants and self.baseline not in self.variants:
            raise ValueError(
                f"baseline {self.baseline!r} is none of the variants {', '.join(self.variants)}"
            )
        if both := sorted({*self.variants} & {*self.evaluations}):
            raise ValueError(f"{both[0]!r} is a variant and an evaluation; use two names")
        return self

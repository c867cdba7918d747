"""Every knob of a run in one tree: description, unit, bounds, and the paper's value as default.

    config = load_config("ray_jobs/configs/paper.yaml", ["training.epochs=14", "network.width=8"])

The letters in the descriptions say where a default comes from: (P) the paper's text, (F) its
Figure 1, (C) the authors' code, (O) our own choice.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segan.errors import UsageError


class Section(BaseModel):
    """A branch of the tree: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    records: str = Field("", description="URI of the records that `segan ingest` wrote.")
    train: str = Field("train", description="Split that is trained on.")
    validation: str = Field("validation", description="Split that chooses epoch and threshold.")


class NetworkConfig(Section):
    width: int = Field(64, ge=1, description="Channels w of the first block (F).")
    classes: int = Field(1, ge=1, description="Label maps that S draws, one per class (P).")
    global_from: int = Field(
        7, ge=3, description="Kernels of this size and up are global convolutions (C; 9 is F)."
    )
    residual_width: float = Field(
        2.0, gt=0, le=4, description="Width inside a residual block over its channels (C)."
    )
    residual_cap: int = Field(
        16, ge=1, description="Most channels inside a residual block, in multiples of w (O)."
    )
    residual_activation: Literal["after", "before"] = Field(
        "after", description="Activation after (O) or before (C) a residual block's sum."
    )


class LogisticConfig(Section):
    """Steepness k of the adaptive logistic, Eq. 3."""

    initial_k: float = Field(1.0, gt=0, description="k at the start (P).")
    final_k: float = Field(0.3, gt=0, description="Least k (P).")
    decay: float = Field(0.9, gt=0, lt=1, description="Factor of one decay (P).")
    every: float = Field(25, gt=0, description="Epochs between two decays (P).")
    scaled: bool = Field(
        False, description="Spread the decays evenly over the run, so that final_k is reached (O)."
    )

    @model_validator(mode="after")
    def _ordered(self) -> LogisticConfig:
        if self.final_k > self.initial_k:
            raise ValueError(
                f"final_k {self.final_k} is above initial_k {self.initial_k}; k only falls, "
                "so choose final_k <= initial_k"
            )
        return self


class LossConfig(Section):
    """The multi-scale L1 loss, Eq. 1 and 2."""

    reading: Literal["concatenated", "per_level"] = Field(
        "concatenated",
        description="Mean over the concatenation of all levels (P, F), or mean of levels' means.",
    )
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, description="A factor for each of the 7 levels; the code has 1,1,2,2,2,2,4 (C)."
    )
    dice_weight: float = Field(0.0, ge=0, description="Weight of a Dice loss on S; the code's 1.")

    @model_validator(mode="after")
    def _seven(self) -> LossConfig:
        if self.level_weights is not None and len(self.level_weights) != 7:
            raise ValueError(
                f"level_weights needs 7 factors (the masked image and C1 to C6), "
                f"found {len(self.level_weights)}"
            )
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Section):
    learning_rate: float = Field(0.003, gt=0, lt=1, description="Adam's at the start (P).")
    betas: tuple[Beta, Beta] = Field((0.5, 0.999), description="Adam's; not in the paper (C).")
    schedule: Literal["linear", "constant"] = Field(
        "linear", description="Linear to zero at the end of the run (P), or constant."
    )
    workers_rule: Literal["none", "linear", "sqrt"] = Field(
        "none", description="What the learning rate is multiplied by: 1, workers, or their root."
    )
    clamp: float = Field(0.05, gt=0, description="Critic's parameters stay in [-clamp, clamp] (P).")
    clamp_scope: Literal["all", "convolutions"] = Field(
        "all", description="Clamp every parameter (P, C), or leave the norms free."
    )


class AugmentConfig(Section):
    crop: int = Field(128, ge=64, description="Side of the random square crop, pixels (P).")
    flip_horizontal: float = Field(0.5, ge=0, le=1, description="Probability (P).")
    flip_vertical: float = Field(0.5, ge=0, le=1, description="Probability (P).")
    brightness: float = Field(0.4, ge=0, lt=1, description="Factor in 1 +- this (P; strength C).")
    contrast: float = Field(0.4, ge=0, lt=1, description="Factor in 1 +- this (P; strength C).")
    saturation: float = Field(0.4, ge=0, lt=1, description="Factor in 1 +- this (P; strength C).")
    hue: float = Field(0.1, ge=0, le=0.5, description="Turn of the hue circle, +- (P; strength C).")


class TrainingConfig(Section):
    epochs: int = Field(300, ge=1, description="Passes over the training records.")
    batch_size: int = Field(25, ge=1, description="Images per worker and step (P).")
    seed: int = Field(0, ge=0, description="Initial weights, order and augmentation follow it.")
    validate_every: int = Field(1, ge=1, description="Epochs between two validations.")
    log_every: int = Field(10, ge=1, description="Steps between two lines of step metrics.")


class EvaluationConfig(Section):
    frame: Literal["whole", "padded", "resized"] = Field(
        "whole",
        description="Frame put in as it is, reflected out to a multiple of 64, or as a square "
        "of the crop's side (O; C resizes).",
    )
    threshold: float = Field(0.4, gt=0, lt=1, description="Probability above it is lesion (P).")
    batch_size: int = Field(25, ge=1, description="Frames at once.")


class ClusterConfig(Section):
    """How the run lies on a Ray cluster; none of it changes what one worker computes."""

    workers: int = Field(1, ge=1, description="DDP workers.")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that each worker reserves.")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that each worker reserves.")
    threads_per_worker: int = Field(
        0, ge=0, description="Torch threads of a worker; 0 shares the node's cores evenly."
    )
    max_failures: int = Field(2, ge=0, description="Times the worker group is started again.")


class SearchConfig(Section):
    """A study: what is searched, and how soon a trial is given up. Runs take no notice of it.

    The threshold is searched too, over all of them and exactly, by each trial's validations.
    """

    method: Literal["random", "grid", "optuna"] = Field(
        "random",
        description="Points drawn at random, the grid of every final_k (P), or Optuna's.",
    )
    trials: int = Field(8, ge=1, description="Points drawn; a grid has as many as it has.")
    learning_rate: tuple[float, float] = Field(
        (0.0005, 0.01), description="Least and most, log-uniform."
    )
    clamp: tuple[float, float] = Field((0.01, 0.1), description="Least and most, log-uniform.")
    final_k: tuple[float, ...] = Field(
        (0.1, 0.2, 0.3, 0.5, 0.7, 1.0), min_length=1, description="Values to choose from."
    )
    seed: int = Field(0, ge=0, description="The points are a function of it.")
    early_stopping: bool = Field(True, description="ASHA on validation Jaccard; else none.")
    grace_period: int = Field(1, ge=1, description="Epochs before a trial can be given up.")
    reduction_factor: float = Field(3, gt=1, description="One of so many goes on at a rung.")
    concurrent: int = Field(0, ge=0, description="Trials at a time; 0 for what the cluster holds.")

    @model_validator(mode="after")
    def _ranges(self) -> SearchConfig:
        for name in ("learning_rate", "clamp"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(
                    f"{name} [{low}, {high}]: expected two positive numbers, the lesser first"
                )
        if min(self.final_k) <= 0:
            raise ValueError(f"final_k {list(self.final_k)}: expected positive numbers")
        return self


class Config(Section):
    """One run, whole; with `search`, one study."""

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    logistic: LogisticConfig = LogisticConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _enough_to_normalise(self) -> Config:
        deepest = math.ceil(self.augment.crop / 32) // 2
        if self.training.batch_size * deepest**2 < 2:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} with augment.crop "
                f"{self.augment.crop} leaves one value a channel for the deepest batch norm; "
                "use a batch of at least 2, or a crop of at least 97"
            )
        return self


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides on top.

    Args:
        path: a YAML file, or None for the paper's defaults.
        overrides: `section.key=value` each; the value is read as YAML.

    Raises:
        UsageError: the file cannot be read, or a key or value is not one of the tree's; the
            message names the nearest key that is.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """A tree of plain values as a Config; raises UsageError with one line for each mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError("\n".join(_explain(e) for e in error.errors())) from None


def known_keys() -> Iterator[tuple[str, Any]]:
    """(`section.key`, its pydantic field) for every knob, in the order of the tree."""
    for section, field in Config.model_fields.items():
        for key, leaf in field.annotation.model_fields.items():  # type: ignore[union-attr]
            yield f"{section}.{key}", leaf


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UsageError(f"configuration {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"configuration {path}: not YAML ({said})") from None
    if not isinstance(tree, dict):
        raise UsageError(f"configuration {path}: expected sections, found {type(tree).__name__}")
    # A section whose keys are all commented out is an empty one.
    return {key: {} if branch is None else branch for key, branch in tree.items()}


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, dot, leaf = key.partition(".")
    if not (separator and dot and section and leaf):
        raise UsageError(
            f"override {override!r}: expected section.key=value, as in network.width=8"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"override {override!r}: the value is not YAML") from None
    branch = tree.setdefault(section, {})
    if not isinstance(branch, dict):
        raise UsageError(f"configuration {section}: expected keys and values, found {branch!r}")
    branch[leaf] = value


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        found = (
            "" if isinstance(error["input"], dict | BaseModel) else f", found {error['input']!r}"
        )
        said = f"{error['msg'].removeprefix('Value error, ')}{found}"
        return f"configuration {key}: {said}" if key else f"configuration {said}"
    known = [name for name, _ in known_keys()] + list(Config.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"configuration {key}: unknown key; the nearest known one is {near[0]}"

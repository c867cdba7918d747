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
from pydantic import BaseModel, Field, ValidationError, model_validator

from segan.errors import UsageError
from segan.studies import AblationConfig, SearchConfig, Section


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
    spectral_norm: bool = Field(
        False, description="Spectral norm on C's weights (O); made for optimizer.clamp=null."
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
    """The multi-scale L1 loss, Eq. 1 and 2, and what the paper argues against."""

    adversary: Literal["multi_scale", "scalar", "none"] = Field(
        "multi_scale",
        description="C's features (P), one number of C's as in a classic GAN, or S without C.",
    )
    adversary_weight: float = Field(1.0, ge=0, description="Weight of C's word in S's loss (P).")
    reading: Literal["concatenated", "per_level"] = Field(
        "concatenated",
        description="Mean over the concatenation of all levels (P, F), or mean of levels' means.",
    )
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None, description="A factor for each of the 7 levels; the code has 1,1,2,2,2,2,4 (C)."
    )
    dice_weight: float = Field(0.0, ge=0, description="Weight of a Dice loss on S; the code's 1.")
    cross_entropy_weight: float = Field(
        0.0, ge=0, description="Weight of a pixel-wise cross-entropy on S (O)."
    )

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        alone = self.adversary == "none" or self.adversary_weight == 0
        if alone and not (self.dice_weight or self.cross_entropy_weight):
            raise ValueError(
                "S would learn from nothing: without an adversary, give loss.dice_weight or "
                "loss.cross_entropy_weight a value above 0"
            )
        return self

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
    warmup: float = Field(
        0.0, ge=0, lt=1, description="Share of the run over which the rate rises from zero (O)."
    )
    clamp: float | None = Field(
        0.05, gt=0, description="Critic's parameters stay in [-clamp, clamp] (P); null for free."
    )
    clamp_scope: Literal["all", "convolutions"] = Field(
        "all", description="Clamp every parameter (P, C), or leave the norms free."
    )


class AugmentConfig(Section):
    crop: int = Field(128, ge=64, description="Side of the random square crop, pixels (P).")
    resize_probability: float = Field(
        0.0, ge=0, le=1, description="Of the whole frame squeezed to the square instead (C; 0.5)."
    )
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
    ema: float = Field(
        0.0, ge=0, lt=1, description="Decay of S's averaged weights, a step; 0 for none (O)."
    )
    validate_every: int = Field(1, ge=1, description="Epochs between two validations.")
    checkpoint_every: int = Field(
        0, ge=0, description="Steps between two checkpoints within epochs; 0 for none but those."
    )
    log_every: int = Field(10, ge=1, description="Steps between two lines of step metrics.")


class PerformanceConfig(Section):
    """How a step is computed; what it computes is the same but for rounding (O)."""

    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the networks' arithmetic; weights and losses stay float32."
    )
    channels_last: bool = Field(
        True, description="Channels of a pixel beside each other in memory, not planes of them."
    )
    compile: Literal["off", "kernels", "graphs"] = Field(
        "off", description="Networks as compiled kernels; on CUDA also as graphs of them."
    )


class EvaluationConfig(Section):
    frame: Literal["whole", "padded", "resized"] = Field(
        "whole",
        description="Frame put in as it is, reflected out to a multiple of 64, or as a square "
        "of the crop's side (O; C resizes).",
    )
    flips: bool = Field(
        False, description="The mean of the maps of the frame and its three mirror images (O)."
    )
    threshold: float = Field(0.4, gt=0, lt=1, description="Probability above it is lesion (P).")
    batch_size: int = Field(25, ge=1, description="Frames at once.")
    report: bool = Field(True, description="Write report.html at the end.")


class ClusterConfig(Section):
    """How the run lies on a Ray cluster; none of it changes what one worker computes."""

    workers: int = Field(1, ge=1, description="DDP workers.")
    min_workers: int = Field(
        0, ge=0, description="Fewest that a run goes on with where nodes are lost; 0 for all."
    )
    gpus_per_worker: float = Field(0, ge=0, description="GPUs that each worker reserves.")
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that each worker reserves.")
    threads_per_worker: int = Field(
        0, ge=0, description="Torch threads of a worker; 0 shares the node's cores evenly."
    )
    wait_seconds: float = Field(
        0, ge=0, description="How long a job waits for nodes, asking an autoscaler if there is one."
    )
    max_failures: int = Field(2, ge=0, description="Times the worker group is started again.")

    @property
    def elastic(self) -> bool:
        """Whether a run goes on with fewer workers than it asks for."""
        return 0 < self.min_workers < self.workers

    @property
    def least_workers(self) -> int:
        """That a run can start with."""
        return self.min_workers if self.elastic else self.workers

    @model_validator(mode="after")
    def _fewest(self) -> ClusterConfig:
        if self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above workers {self.workers}; "
                "choose min_workers <= workers"
            )
        return self


class Config(Section):
    """One run, whole; with `search` or `ablation`, one study."""

    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    logistic: LogisticConfig = LogisticConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    augment: AugmentConfig = AugmentConfig()
    training: TrainingConfig = TrainingConfig()
    performance: PerformanceConfig = PerformanceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    search: SearchConfig = SearchConfig()
    ablation: AblationConfig = AblationConfig()

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

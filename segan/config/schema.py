"""Every knob of a run in one tree: description, unit, bounds, and the paper's value as default.

The letters in the descriptions say where a default comes from: (P) the paper's text, (F) its
Figure 1, (C) the authors' code, (O) our own choice.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from segan.config.base import FrozenConfig
from segan.config.search import AblationConfig, SearchConfig


class DataConfig(FrozenConfig):
    records: str = Field("", description="URI of the records that `segan ingest` wrote.")
    train: str = Field("train", description="Split that is trained on.")
    validation: str = Field("validation", description="Split that chooses epoch and threshold.")


class NetworkConfig(FrozenConfig):
    width: int = Field(64, ge=1, description="Channels w of the first block (F).")
    classes: int = Field(1, ge=1, description="Label maps that S draws, one per class (P).")
    global_conv_min_kernel: int = Field(
        7, ge=3, description="Kernels of this size and up are global convolutions (C; 9 is F)."
    )
    residual_expansion: float = Field(
        2.0, gt=0, le=4, description="Width inside a residual block over its channels (C)."
    )
    residual_max_width: int = Field(
        16, ge=1, description="Most channels inside a residual block, in multiples of w (O)."
    )
    residual_activation: Literal["after", "before"] = Field(
        "after", description="Activation after (O) or before (C) a residual block's sum."
    )
    spectral_norm: bool = Field(
        False, description="Spectral norm on C's weights (O); made for optimizer.weight_clip=null."
    )


class LogisticConfig(FrozenConfig):
    """Steepness k of the adaptive logistic, Eq. 3."""

    initial_k: float = Field(1.0, gt=0, description="k at the start (P).")
    final_k: float = Field(0.3, gt=0, description="Least k (P).")
    decay: float = Field(0.9, gt=0, lt=1, description="Factor of one decay (P).")
    decay_every_epochs: float = Field(25, gt=0, description="Epochs between two decays (P).")
    stretch_to_run: bool = Field(
        False, description="Spread the decays evenly over the run, so that final_k is reached (O)."
    )

    @model_validator(mode="after")
    def _check_k_order(self) -> LogisticConfig:
        if self.final_k > self.initial_k:
            raise ValueError(
                f"final_k {self.final_k} is above initial_k {self.initial_k}; k only falls, "
                "so choose final_k <= initial_k"
            )
        return self


class LossConfig(FrozenConfig):
    """The multi-scale L1 loss, Eq. 1 and 2, and what the paper argues against."""

    critic: Literal["multi_scale", "scalar", "none"] = Field(
        "multi_scale",
        description="C's features (P), one number of C's as in a classic GAN, or S without C.",
    )
    adversarial_weight: float = Field(1.0, ge=0, description="Weight of C's word in S's loss (P).")
    reduction: Literal["concatenated", "per_level"] = Field(
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
    def _check_has_loss(self) -> LossConfig:
        without_critic = self.critic == "none" or self.adversarial_weight == 0
        if without_critic and not (self.dice_weight or self.cross_entropy_weight):
            raise ValueError(
                "S would learn from nothing: without an adversary, give loss.dice_weight or "
                "loss.cross_entropy_weight a value above 0"
            )
        return self

    @model_validator(mode="after")
    def _check_level_weights(self) -> LossConfig:
        if self.level_weights is not None and len(self.level_weights) != 7:
            raise ValueError(
                f"level_weights needs 7 factors (the masked image and C1 to C6), "
                f"found {len(self.level_weights)}"
            )
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(FrozenConfig):
    learning_rate: float = Field(0.003, gt=0, lt=1, description="Adam's at the start (P).")
    betas: tuple[Beta, Beta] = Field((0.5, 0.999), description="Adam's; not in the paper (C).")
    schedule: Literal["linear", "constant"] = Field(
        "linear", description="Linear to zero at the end of the run (P), or constant."
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none", description="What the learning rate is multiplied by: 1, workers, or their root."
    )
    warmup_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the run over which the rate rises from zero (O)."
    )
    weight_clip: float | None = Field(
        0.05, gt=0, description="Critic's parameters stay in [-clamp, clamp] (P); null for free."
    )
    weight_clip_scope: Literal["all", "convolutions"] = Field(
        "all", description="Clamp every parameter (P, C), or leave the norms free."
    )


class AugmentConfig(FrozenConfig):
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


class TrainingConfig(FrozenConfig):
    epochs: int = Field(300, ge=1, description="Passes over the training records.")
    batch_size: int = Field(25, ge=1, description="Images per worker and step (P).")
    seed: int = Field(0, ge=0, description="Initial weights, order and augmentation follow it.")
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="Decay of S's averaged weights, a step; 0 for none (O)."
    )
    validate_every_epochs: int = Field(1, ge=1, description="Epochs between two validations.")
    checkpoint_every_steps: int = Field(
        0, ge=0, description="Steps between two checkpoints within epochs; 0 for none but those."
    )
    log_every_steps: int = Field(10, ge=1, description="Steps between two lines of step metrics.")


class PerformanceConfig(FrozenConfig):
    """How a step is computed; what it computes is the same but for rounding (O)."""

    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="Of the networks' arithmetic; weights and losses stay float32."
    )
    channels_last: bool = Field(
        True, description="Channels of a pixel beside each other in memory, not planes of them."
    )
    compile_mode: Literal["none", "default", "reduce-overhead"] = Field(
        "none", description="Networks as compiled kernels; on CUDA also as graphs of them."
    )


class EvaluationConfig(FrozenConfig):
    resize_mode: Literal["native", "pad", "resize"] = Field(
        "native",
        description="Frame put in as it is, reflected out to a multiple of 64, or as a square "
        "of the crop's side (O; C resizes).",
    )
    tta: bool = Field(
        False, description="The mean of the maps of the frame and its three mirror images (O)."
    )
    threshold: float = Field(0.4, gt=0, lt=1, description="Probability above it is lesion (P).")
    batch_size: int = Field(25, ge=1, description="Frames at once.")
    report: bool = Field(True, description="Write report.html at the end.")


class ClusterConfig(FrozenConfig):
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
    resource_timeout_s: float = Field(
        0, ge=0, description="How long a job waits for nodes, asking an autoscaler if there is one."
    )
    max_failures: int = Field(2, ge=0, description="Times the worker group is started again.")

    @property
    def elastic(self) -> bool:
        """Whether a run goes on with fewer workers than it asks for."""
        return 0 < self.min_workers < self.workers

    @property
    def required_workers(self) -> int:
        """That a run can start with."""
        return self.min_workers if self.elastic else self.workers

    @model_validator(mode="after")
    def _check_min_workers(self) -> ClusterConfig:
        if self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above workers {self.workers}; "
                "choose min_workers <= workers"
            )
        return self


class Config(FrozenConfig):
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
    def _check_batch_norm_values(self) -> Config:
        deepest = math.ceil(self.augment.crop / 32) // 2
        if self.training.batch_size * deepest**2 < 2:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} with augment.crop "
                f"{self.augment.crop} leaves one value a channel for the deepest batch norm; "
                "use a batch of at least 2, or a crop of at least 97"
            )
        return self

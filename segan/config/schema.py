"""The schema of a run's configuration: every key with its description, bounds and default.

The letters in the descriptions name the source of a default: (P) the paper's text, (F) its
Figure 1, (C) the authors' code, (O) our own choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segan.config.augment import AugmentConfig
from segan.config.base import FrozenConfig
from segan.config.search import AblationConfig, SearchConfig
from segan.config.tracking import TrackingConfig
from segan.config.validation import set_values, validate


class DataConfig(FrozenConfig):
    records: str = Field("", description="URI of the records that `segan ingest` wrote.")
    train: str = Field("train", description="Split to train on.")
    validation: str = Field(
        "validation", description="Split that selects the best checkpoint and the threshold."
    )


class NetworkConfig(FrozenConfig):
    width: int = Field(64, ge=1, le=512, description="Channels w of the first block (F).")
    classes: int = Field(
        1, ge=1, le=255, description="Label maps that S predicts, one per class (P)."
    )
    global_conv_min_kernel: int = Field(
        7, ge=3, description="Smallest kernel that is a global convolution (C; F has 9)."
    )
    residual_expansion: float = Field(
        2.0,
        gt=0,
        le=4,
        description="Channels inside a residual block, as a multiple of its input's (C).",
    )
    residual_max_width: int = Field(
        16,
        ge=1,
        le=64,
        description="Maximum channels inside a residual block, in multiples of w (O).",
    )
    residual_activation: Literal["after", "before"] = Field(
        "after", description="Activation `after` (O) or `before` (C) a residual block's sum."
    )
    segmentor_norm: Literal["batch", "group"] = Field(
        "batch",
        description="Normalisation in S: `batch` (P), or `group`, over 8 groups of each image's "
        "own channels (O).",
    )
    segmentor_init: Literal["kaiming", "uniform"] = Field(
        "kaiming",
        description="Initial weights of S's convolutions: `kaiming`, normal by the outputs (C), or "
        "`uniform` by the inputs, which are smaller (torch's default, O).",
    )
    spectral_norm: bool = Field(
        False,
        description="Spectral normalisation of C's weights (O); meant for "
        "optimizer.weight_clip=null.",
    )


class LogisticConfig(FrozenConfig):
    """The parameter k of the adaptive logistic, Eq. 3; the smaller k, the steeper the curve."""

    initial_k: float = Field(1.0, gt=0, description="k in the first epoch (P).")
    final_k: float = Field(0.3, gt=0, description="Lower bound of k (P).")
    decay: float = Field(
        0.9, gt=0, lt=1, description="Factor by which each decay multiplies k (P)."
    )
    decay_every_epochs: float = Field(25, gt=0, description="Epochs between two decays of k (P).")
    stretch_to_run: bool = Field(
        False,
        description="Spread the decays evenly over the run, so that k reaches final_k in the last "
        "epoch (O).",
    )

    @model_validator(mode="after")
    def _check_k_order(self) -> LogisticConfig:
        if self.final_k > self.initial_k:
            raise ValueError(
                f"final_k {self.final_k} is above initial_k {self.initial_k}; k only decreases, "
                "so choose final_k <= initial_k"
            )
        return self


class LossConfig(FrozenConfig):
    """The multi-scale L1 loss, Eq. 1 and 2, and the losses that the paper compares it with."""

    critic: Literal["multi_scale", "scalar", "none"] = Field(
        "multi_scale",
        description="`multi_scale`: L1 distance of C's features (P); `scalar`: one score per "
        "image, as in a classic GAN; `none`: S without C.",
    )
    adversarial_weight: float = Field(
        1.0, ge=0, description="Weight of the adversarial term in S's loss (P)."
    )
    reduction: Literal["concatenated", "per_level"] = Field(
        "concatenated",
        description="`concatenated`: mean over all levels' features together (P, F); `per_level`: "
        "mean of the levels' means.",
    )
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None,
        description="Weight of each of the 7 levels; null weights all by 1 (P), the authors' code "
        "has [1,1,2,2,2,2,4] (C).",
    )
    dice_weight: float = Field(
        0.0, ge=0, description="Weight of a Dice loss on S; the authors' code has 1 (C)."
    )
    cross_entropy_weight: float = Field(
        0.0, ge=0, description="Weight of a pixel-wise cross-entropy on S (O)."
    )

    @model_validator(mode="after")
    def _check_has_loss(self) -> LossConfig:
        without_critic = self.critic == "none" or self.adversarial_weight == 0
        if without_critic and not (self.dice_weight or self.cross_entropy_weight):
            raise ValueError(
                "S has no loss: without an adversarial term, set loss.dice_weight or "
                "loss.cross_entropy_weight above 0"
            )
        return self

    @model_validator(mode="after")
    def _check_level_weights(self) -> LossConfig:
        if self.level_weights is not None and len(self.level_weights) != 7:
            raise ValueError(
                f"level_weights: expected 7 weights (of the masked image and C1 to C6), "
                f"found {len(self.level_weights)}"
            )
        return self


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(FrozenConfig):
    learning_rate: float = Field(
        0.003, gt=0, lt=1, description="Adam's learning rate at the start (P)."
    )
    critic_rate: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Adam's learning rate of C at the start, for two time-scales (O); null: S's "
        "(P).",
    )
    betas: tuple[Beta, Beta] = Field(
        (0.5, 0.999), description="Adam's beta 1 and beta 2; not in the paper (C)."
    )
    schedule: Literal["linear", "constant"] = Field(
        "linear",
        description="`linear`: the learning rate falls to 0 at the end of the run (P); `constant`.",
    )
    lr_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="Scaling of the learning rate with the number of workers: `none`, `linear`, or "
        "by its square root.",
    )
    warmup_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of the run over which the learning rate rises from 0 (O).",
    )
    weight_clip: float | None = Field(
        0.05,
        gt=0,
        description="Clips C's parameters to [-weight_clip, weight_clip] after each step (P); null "
        "disables clipping.",
    )
    weight_clip_scope: Literal["all", "convolutions"] = Field(
        "all", description="Parameters to clip: `all` (P, C) or those of the `convolutions` only."
    )


class TrainingConfig(FrozenConfig):
    epochs: int = Field(300, ge=1, description="Passes over the training records.")
    batch_size: int = Field(25, ge=1, description="Images per worker and step (P).")
    seed: int = Field(
        0, ge=0, description="Seed of the initial weights, the sample order and the augmentation."
    )
    init: str = Field(
        "",
        description="Model whose weights the run begins from (warm start): a name that ships with "
        "segan or a URI; empty for random weights (P).",
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per step of an average of S's weights; 0 disables it (O).",
    )
    validate_every_epochs: int = Field(1, ge=1, description="Epochs between two validations.")
    checkpoint_every_steps: int = Field(
        0, ge=0, description="Also save every N steps; 0 saves only after a validation."
    )
    log_every_steps: int = Field(10, ge=1, description="Steps between two lines of step metrics.")


class PerformanceConfig(FrozenConfig):
    """How a step is computed; results differ by rounding only (O)."""

    precision: Literal["auto", "float32", "tf32", "bfloat16"] = Field(
        "auto",
        description="Precision of forward and backward; weights and losses stay float32. `tf32` "
        "is float32 with TF32 products on a GPU; `auto` is bfloat16 on a GPU, else float32.",
    )
    channels_last: bool = Field(True, description="Store images and convolutions as channels-last.")
    compile_mode: Literal["auto", "none", "default", "reduce-overhead"] = Field(
        "auto",
        description="Mode of torch.compile: `none` (not compiled), `default`, or `reduce-overhead` "
        "(with CUDA graphs); `auto` is the last on a GPU where kernels can be compiled, else none.",
    )

    def resolve(self, device: str, can_compile: bool) -> PerformanceConfig:
        """Returns the section with values instead of `auto`.

        Args:
            device: `cuda` or `cpu`.
            can_compile: whether kernels for a GPU can be compiled.
        """
        on_gpu = device == "cuda"
        values = {
            "precision": "bfloat16" if on_gpu else "float32",
            "compile_mode": "reduce-overhead" if on_gpu and can_compile else "none",
        }
        auto = {name: value for name, value in values.items() if getattr(self, name) == "auto"}
        return self.model_copy(update=auto)


class EvaluationConfig(FrozenConfig):
    resize_mode: Literal["native", "pad", "resize"] = Field(
        "native",
        description="Input of S: the frame at its `native` size, with a reflected `pad` to a "
        "multiple of 64, or with `resize` to the crop's square (O; C resizes).",
    )
    tta: bool = Field(
        False,
        description="Test-time augmentation: mean of the maps of the frame and its three mirror "
        "images (O).",
    )
    threshold: float = Field(
        0.4, gt=0, lt=1, description="A pixel whose probability is above it is lesion (P)."
    )
    batch_size: int = Field(25, ge=1, description="Frames per forward pass.")
    report: bool = Field(True, description="Write report.html at the end.")


class ClusterConfig(FrozenConfig):
    """Resources of a run on a Ray cluster; none of them changes what one worker computes."""

    workers: int = Field(1, ge=1, description="Workers of data-parallel training.")
    min_workers: int = Field(
        0, ge=0, description="Minimum workers for elastic training; 0 disables elasticity."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`cuda`: a GPU; `auto`: a GPU if there is one, else the CPU."
    )
    gpus_per_worker: float | None = Field(
        None, ge=0, description="GPUs that each worker reserves; null: 1 on a GPU, else 0."
    )
    cpus_per_worker: float = Field(1, gt=0, description="CPUs that each worker reserves.")
    threads_per_worker: int = Field(
        0, ge=0, description="Torch threads of a worker; 0 divides the node's cores evenly."
    )
    resource_timeout_s: float = Field(
        0,
        ge=0,
        description="Seconds that a job waits for nodes, which it requests from an autoscaler if "
        "there is one, and for other runs to end; 0 does not wait for nodes, and waits for runs "
        "without a limit.",
    )
    step_timeout_s: float = Field(
        1800,
        ge=0,
        description="Seconds without a step or a validation after which the workers are started "
        "again, as after a fault; 0 never does that.",
    )
    max_failures: int = Field(2, ge=0, description="Restarts of the workers before a run fails.")

    @property
    def reserved_gpus(self) -> float:
        """GPUs that each worker reserves, once the device is resolved."""
        return self.gpus_per_worker or 0.0

    @property
    def elastic(self) -> bool:
        """Whether a run continues with fewer workers than it asks for."""
        return 0 < self.min_workers < self.workers

    @property
    def required_workers(self) -> int:
        """Workers that a run needs to start."""
        return self.min_workers if self.elastic else self.workers

    def resolve_device(self, has_gpu: bool) -> ClusterConfig:
        """Returns the section with a device instead of `auto`, and with a number of GPUs.

        Args:
            has_gpu: whether there is any GPU, of this machine or of the cluster.
        """
        gpus, device = self.gpus_per_worker, self.device
        if device == "auto":
            device = "cuda" if (has_gpu if gpus is None else gpus > 0) else "cpu"
        if gpus is None:
            gpus = 1.0 if device == "cuda" else 0.0
        return self.model_copy(update={"device": device, "gpus_per_worker": gpus})

    @model_validator(mode="after")
    def _check_device(self) -> ClusterConfig:
        gpus = self.gpus_per_worker
        if gpus is not None and self.device != "auto" and (gpus > 0) != (self.device == "cuda"):
            raise ValueError(
                f"device {self.device} with gpus_per_worker {gpus:g}; choose one of them and "
                "leave the other at its default"
            )
        return self

    @model_validator(mode="after")
    def _check_min_workers(self) -> ClusterConfig:
        if self.min_workers > self.workers:
            raise ValueError(
                f"min_workers {self.min_workers} is above workers {self.workers}; "
                "choose min_workers <= workers"
            )
        return self


class Config(FrozenConfig):
    """The configuration of one run, or with `search` or `ablation` of one study."""

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
    tracking: TrackingConfig = TrackingConfig()
    search: SearchConfig = SearchConfig()
    ablation: AblationConfig = AblationConfig()

    def with_overrides(self, overrides: Mapping[str, Any]) -> Config:
        """Returns a copy with other values, given by `section.key`.

        Raises:
            UsageError: a key is unknown or a value invalid; with one line for each.
        """
        tree = self.model_dump()
        set_values(tree, overrides)
        return validate(Config, tree)

    @model_validator(mode="after")
    def _check_batch_norm_values(self) -> Config:
        deepest = math.ceil(self.augment.crop / 32) // 2
        if self.training.batch_size * deepest**2 < 2:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} with augment.crop "
                f"{self.augment.crop} leaves one value per channel for the deepest batch norm; "
                "use a batch of at least 2, or a crop of at least 97"
            )
        return self

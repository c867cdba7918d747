"""The metrics of steps and epochs, and the state of the training loop in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class LossValues:
    """Means of the losses over steps and ranks; None before the first logged step."""

    critic_loss: float | None = None
    segmentor_loss: float | None = None
    dice_loss: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the values by name, without those that are None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class StepMetrics(LossValues):
    """Metrics of a step: a line of metrics.jsonl, or the metrics of a mid-epoch checkpoint.

    The losses of a line are means over the steps since the previous line, those of a checkpoint
    over the epoch so far.

    Attributes:
        step, epoch: from 1.
        learning_rate, critic_learning_rate: of S and of C.
        images_per_second: of all workers since the epoch began.
    """

    kind: ClassVar[str] = "step"
    step: int
    epoch: int
    learning_rate: float | None = None
    critic_learning_rate: float | None = None
    k: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpochMetrics(LossValues):
    """Metrics of an epoch: a line of metrics.jsonl. Those from `accuracy` to
    `wrong_saturated_fraction` need a validation.

    Attributes:
        step, epoch: from 1; the losses are means over the epoch's steps.
        cpu_seconds: of all threads of this process; other processes do not lengthen them.
        images_per_second: of all workers.
        data_wait_fraction: part of the epoch that this rank waited for data.
        run_data_wait_fraction: the same, of all epochs since this process started.
        peak_memory_bytes: of this process on its device so far, on a CPU resident.
        jaccard_at_config_threshold: at `evaluation.threshold`; the other scores are at
            `threshold`, the best one; of several classes they are means over the classes, each at
            its own best threshold.
        jaccard_curve: at each threshold of `segan.evaluation.sweep.THRESHOLDS`.
        class_thresholds, class_accuracy, class_dice, class_jaccard: by class, if there are several.
        saturated_fraction, wrong_saturated_fraction: of all validation pixels, and of the wrong
            ones at `threshold`; see `segan.evaluation.saturation`.
        stage_seconds: of each `segan.training.timer.Stage` on this rank since the previous epoch's
            line; a checkpoint is saved after its epoch's line, so it counts for the next.
        checkpoint_seconds, best_jaccard: known after the checkpoint, so not in metrics.jsonl; the
            seconds are those that the training stood still for it.
    """

    kind: ClassVar[str] = "epoch"
    step: int
    epoch: int
    seconds: float
    cpu_seconds: float
    images_per_second: float
    data_wait_fraction: float
    run_data_wait_fraction: float
    first_batch_ms: float
    workers: int
    k: float
    peak_memory_bytes: int
    accuracy: float | None = None
    dice: float | None = None
    jaccard: float | None = None
    threshold: float | None = None
    jaccard_at_config_threshold: float | None = None
    jaccard_curve: list[float] | None = None
    class_thresholds: dict[str, float] | None = None
    class_accuracy: dict[str, float] | None = None
    class_dice: dict[str, float] | None = None
    class_jaccard: dict[str, float] | None = None
    saturated_fraction: float | None = None
    wrong_saturated_fraction: float | None = None
    stage_seconds: dict[str, float] | None = None
    checkpoint_seconds: float | None = None
    best_jaccard: float | None = None


@dataclass
class LoopState:
    """What the training loop resumes with, beside weights, optimisers and the samples seen.

    Attributes:
        step: steps done.
        num_validations: validations done.
        num_lines: of metrics written.
        jaccard, saturated_fraction, wrong_saturated_fraction: of the last validation.
        losses: as last logged, for a step or for an epoch.
        loss_sums: of `LossSums.gather`, when the state was saved.
    """

    step: int = 0
    num_validations: int = 0
    num_lines: int = 0
    jaccard: float | None = None
    best_jaccard: float | None = None
    saturated_fraction: float | None = None
    wrong_saturated_fraction: float | None = None
    losses: LossValues = field(default_factory=LossValues)
    loss_sums: list[list[list[float]]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Returns the state as JSON values, for the checkpoint's info."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LoopState:
        """Restores what `to_dict` gave; raises LookupError, TypeError or ValueError if invalid."""
        return cls(**{**values, "losses": LossValues(**values["losses"])})

"""The metrics of a step or an epoch as they lie in storage: metrics.jsonl and manifests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from segan.utils.models import Count

Number = Annotated[float, Field(strict=True)]  # an integer too, but neither "0.5" nor true
Score = Annotated[float, Field(strict=True, ge=0, le=1)]
Threshold = Annotated[float, Field(strict=True, gt=0, lt=1)]


class MetricValues(BaseModel):
    """Metrics by name. Those that are listed are used by commands; the others are only shown."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number | str | list[Number] | dict[str, Number] | None] = Field(
        init=False
    )

    epoch: Count = 0
    step: Count = 0
    accuracy: Score = 0.0
    dice: Score = 0.0
    jaccard: Score = 0.0
    threshold: Threshold = 0.5
    class_thresholds: dict[str, Threshold] = {}
    class_accuracy: dict[str, Score] = {}
    class_dice: dict[str, Score] = {}
    class_jaccard: dict[str, Score] = {}
    jaccard_at_config_threshold: Score = 0.0
    jaccard_curve: list[Score] = []
    stage_seconds: dict[str, Annotated[float, Field(strict=True, ge=0)]] = {}
    images_per_second: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] = 0.0


class MetricsLine(MetricValues):
    """A line of metrics.jsonl."""

    kind: Literal["step", "epoch"]
    samples: Count
    epoch: Count


def check_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics as they are; raises ValueError if a command cannot use them."""
    MetricValues.model_validate(metrics)
    if "jaccard" in metrics and "threshold" not in metrics:
        raise ValueError("a jaccard without its threshold")
    return metrics

"""What a tracker must do, and how the one that a user names is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from segan.runs.trial import TrialStatus
from segan.tracking.stored import MetricPoint, TrackedItem
from segan.utils.extras import require_extra

TrackerName = Literal["mlflow", "wandb"]


class ItemWriter(Protocol):
    """A run or a study in a tracker.

    Attributes:
        id: by which the tracker knows it.
        url: of its page; "" if there is none.
        position: samples up to which the tracker has the metrics; -1 before the first.
    """

    id: str
    url: str
    position: int

    def log(self, points: Sequence[MetricPoint]) -> None:
        """Adds points, which are beyond `position`, and moves it."""

    def finish(self, status: TrialStatus, files: Mapping[str, bytes]) -> None:
        """Ends the item with its status and stores its files."""


class Tracker(Protocol):
    """A place that shows runs.

    Attributes:
        errors: what its library raises if the place cannot be used.
    """

    errors: tuple[type[Exception], ...]

    def open_item(self, item: TrackedItem, parent: ItemWriter | None) -> ItemWriter:
        """Creates an item, or opens the one of the same URI to go on with it."""


def open_tracker(name: TrackerName, place: str | None = None) -> Tracker:
    """Opens a tracker.

    Args:
        place: the URI of an MLflow server, or a W&B project; default: what the tracker's own
            environment variables say.

    Raises:
        UsageError: its package is not installed, or the place is missing.
    """
    require_extra(f"tracker {name}", name)
    if name == "mlflow":
        from segan.tracking.mlflow_tracker import MlflowTracker

        return MlflowTracker(place)
    from segan.tracking.wandb_tracker import WandbTracker

    return WandbTracker(place)

"""Copies a run or a study from storage to trackers, once or while it is trained.

A tracker never holds a training up: a thread of the driver reads what the training has stored, and
what a tracker does not take now it gets at the next update.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from segan import storage
from segan.errors import SeganError
from segan.runs.listing import open_run
from segan.runs.run import RUN_FILE, Run
from segan.runs.study import STUDY_FILE, Study
from segan.runs.trial import TrialStatus
from segan.storage.lease import read_driver
from segan.tracking.stored import (
    TrackedItem,
    describe_run,
    describe_study,
    iter_metrics,
    run_status,
    started_trials,
    stored_files,
)
from segan.tracking.tracker import ItemWriter, Tracker, TrackerName, open_tracker

if TYPE_CHECKING:
    from segan.config.tracking import TrackingConfig

logger = logging.getLogger(__name__)

UPDATE_INTERVAL_S = 10.0


@dataclass
class TrackedCount:
    """An item of a tracker, and how many points of metrics this process has added to it."""

    uri: str
    id: str
    url: str
    num_points: int = 0

    def to_dict(self) -> dict[str, str | int]:
        return asdict(self)


class TrackerCopy:
    """The copy of a run, or of a study with its trials, in a tracker."""

    def __init__(self, uri: str, name: TrackerName, tracker: Tracker):
        self.uri, self.name, self._tracker = storage.normalise(uri), name, tracker
        self._writers: dict[str, ItemWriter] = {}
        self._finished: set[str] = set()
        self._is_failing = False
        self.counts: dict[str, TrackedCount] = {}

    def update(self, final: bool = False) -> None:
        """Copies what is stored and not yet copied.

        Args:
            final: also end the items and copy their files, which a trial gets when it has ended.

        Raises:
            SeganError: storage cannot be read, or the tracker cannot be used.
        """
        try:
            if storage.exists(storage.join(self.uri, STUDY_FILE)):
                self._update_study(Study(self.uri), final)
            elif final or storage.exists(storage.join(self.uri, RUN_FILE)):
                self._update_run(open_run(self.uri), final)
        except self._tracker.errors as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SeganError(f"tracker {self.name}: {reason}; check that it runs") from error

    def _update_study(self, study: Study, final: bool) -> None:
        runs = started_trials(study)
        if not runs:
            return
        if study.uri not in self._writers:
            item = describe_study(study, describe_run(runs[0]).started_at)
            self._open(item, None)
        parent = self._writers[study.uri]
        for run in runs:
            self._update_run(run, final, storage.basename(study.uri), parent)
        if final and study.uri not in self._finished:
            item = describe_study(study, 0.0)
            ended = all(trial.result().has_ended for trial in study.trials())
            status = TrialStatus.FINISHED if ended else TrialStatus.UNFINISHED
            parent.finish(status, stored_files(item))
            self._finished.add(study.uri)

    def _update_run(
        self, run: Run, final: bool, group: str | None = None, parent: ItemWriter | None = None
    ) -> None:
        if run.uri in self._finished:
            return
        item = describe_run(run, group)
        if run.uri not in self._writers:
            self._open(item, parent)
        writer = self._writers[run.uri]
        # Read before the metrics, so that a run that has ended has all of them.
        status = run_status(run, item)
        points = list(iter_metrics(run, writer.position))
        writer.log(points)
        self.counts[run.uri].num_points += len(points)
        if final or (parent and status.has_ended):
            writer.finish(status, stored_files(item))
            self._finished.add(run.uri)

    def _open(self, item: TrackedItem, parent: ItemWriter | None) -> None:
        writer = self._tracker.open_item(item, parent)
        self._writers[item.uri] = writer
        self.counts[item.uri] = TrackedCount(item.uri, writer.id, writer.url)

    def try_update(self, final: bool = False) -> None:
        """Updates; a failure is logged instead of raised, once until an update succeeds."""
        try:
            self.update(final)
        except Exception as error:  # of a library that must not end a training
            if final or not self._is_failing:
                advice = f"complete it with `segan runs track {self.uri} --to {self.name}`"
                reason = str(error) if isinstance(error, SeganError) else repr(error)
                logger.warning(f"{reason}; {advice if final else 'trying again'}")
            self._is_failing = True
        else:
            self._is_failing = False


def follow(copy: TrackerCopy, sleep: Callable[[float], object] = time.sleep) -> None:
    """Updates a copy until no driver holds the run or study any more, and then completes it."""
    while read_driver(copy.uri):
        copy.try_update()
        sleep(UPDATE_INTERVAL_S)
    copy.update(final=True)


@contextlib.contextmanager
def track_live(config: TrackingConfig, uri: str) -> Iterator[None]:
    """Keeps the trackers of a configuration up to date while the block runs.

    Raises:
        UsageError: the package of a tracker is not installed; before the block.
    """
    places: dict[TrackerName, str | None] = {"mlflow": config.mlflow, "wandb": config.wandb}
    copies = [
        TrackerCopy(uri, name, open_tracker(name, place)) for name, place in places.items() if place
    ]
    finished = threading.Event()

    def update_in_background() -> None:
        while not finished.wait(UPDATE_INTERVAL_S):
            for copy in copies:
                copy.try_update()

    thread = threading.Thread(target=update_in_background, name="trackers", daemon=True)
    if copies:
        thread.start()
    try:
        yield
    finally:
        finished.set()
        if copies:
            thread.join()
        for copy in copies:
            copy.try_update(final=True)

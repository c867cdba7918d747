"""How far a run or a study is, from what lies in storage alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from statistics import fmean
from typing import Any, Literal, NamedTuple

from segan import storage
from segan.report.search import Rung, TrialSummary, combine_trials, summarise_trial
from segan.runs.listing import epoch_seconds, open_run
from segan.runs.run import RUN_FILE, Run
from segan.runs.study import STUDY_FILE, Study
from segan.runs.trial import Trial, TrialStatus
from segan.storage.lease import read_driver
from segan.utils.models import FrozenModel

NUM_RECENT_EPOCHS = 5  # whose mean duration is expected of the next ones
RUNNING, STOPPED, WAITING = "running", "stopped", "waiting"


class Progress(FrozenModel):
    """The progress of a run, or of a study with its trials.

    Attributes:
        host: of the driver; None if none holds the run, so that it has ended or was stopped.
        trials: the best first; a run is a single one. The `reason` of an unfinished trial is
            `running`, `stopped` or `waiting` (not started).
        total_epochs: of each trial.
        rungs: of ASHA; empty for a run and without early stopping.
        num_missing: trials that a sampler has yet to suggest.
        seconds_left: estimated from the latest epochs; None before the first, 0 at the end.
        read_at: UTC.
    """

    kind: Literal["run", "study"]
    uri: str
    host: str | None
    algorithm: str
    trials: tuple[TrialSummary, ...]
    total_epochs: int
    rungs: tuple[Rung, ...]
    num_missing: int
    seconds_left: float | None
    read_at: str

    @property
    def best(self) -> TrialSummary | None:
        """The best trial; None before the first validation."""
        return next((trial for trial in self.trials if trial.best_jaccards), None)

    @property
    def num_ended(self) -> int:
        return sum(trial.status.has_ended for trial in self.trials)


class _TrialState(NamedTuple):
    """A trial, the duration of its epochs, and the newest metrics."""

    summary: TrialSummary
    seconds_per_epoch: float | None
    metrics: Sequence[Mapping[str, Any]]


class ProgressReader:
    """Reads a run's or study's progress again and again; what has ended is read once.

    Raises:
        StorageError: there is neither a run nor a study at the URI.
    """

    def __init__(self, uri: str):
        self.uri = storage.normalise(uri)
        storage.check_access(self.uri)
        self._study = Study(self.uri) if self._exists(STUDY_FILE) else None
        self._run = None if self._study else open_run(self.uri)
        self._ended: dict[str, _TrialState] = {}
        self._states: dict[str, _TrialState] = {}

    def read(self) -> Progress:
        """Reads the current state."""
        # The driver first: one that ends later has not left any trial as stopped.
        holder = read_driver(self.uri)
        host = holder.host if holder else None
        trials = self._study.trials() if self._study else [self._as_trial()]
        states = storage.map_in_threads(lambda trial: self._read_trial(trial, host), trials)
        self._states = {state.summary.name: state for state in states}
        return self._combine(states, host)

    def metrics(self, trial: str) -> Sequence[Mapping[str, Any]]:
        """The metrics of a trial at the last read."""
        return self._states[trial].metrics

    def _combine(self, states: Sequence[_TrialState], host: str | None) -> Progress:
        summaries = tuple(state.summary for state in states)
        if self._study:
            config = self._study.config()
            search = combine_trials(self._study, summaries)
            num_missing = 0
            if search.algorithm == "optuna":
                num_missing = max(0, config["search"]["trials"] - len(states))
            algorithm, rungs, summaries = search.algorithm, search.rungs, search.trials
        else:
            assert self._run
            config = self._run.description()["config"]
            algorithm, rungs, num_missing = "", (), 0
        total_epochs = config["training"]["epochs"]
        return Progress(
            kind="study" if self._study else "run",
            uri=self.uri,
            host=host,
            algorithm=algorithm,
            trials=summaries,
            total_epochs=total_epochs,
            rungs=rungs,
            num_missing=num_missing,
            seconds_left=estimate_seconds_left(
                [(state.summary, state.seconds_per_epoch) for state in states],
                total_epochs,
                num_missing,
            ),
            read_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _read_trial(self, trial: Trial, host: str | None) -> _TrialState:
        if trial.name in self._ended:
            return self._ended[trial.name]
        metrics = trial.run.metrics()
        summary = summarise_trial(trial, metrics)
        if self._run and summary.epochs >= self._run.description()["config"]["training"]["epochs"]:
            summary = summary.model_copy(update={"status": TrialStatus.FINISHED})
        if summary.status is TrialStatus.UNFINISHED:
            started = bool(metrics) or storage.exists(storage.join(trial.run.uri, RUN_FILE))
            reason = WAITING if not started else RUNNING if host else STOPPED
            summary = summary.model_copy(update={"reason": reason})
        state = _TrialState(summary, _seconds_per_epoch(metrics), metrics)
        if summary.status.has_ended:
            self._ended[trial.name] = state
        return state

    def _as_trial(self) -> Trial:
        return Trial(storage.basename(self.uri), {}, Run(self.uri))

    def _exists(self, name: str) -> bool:
        return storage.exists(storage.join(self.uri, name))


def estimate_seconds_left(
    trials: Sequence[tuple[TrialSummary, float | None]], total_epochs: int, num_missing: int = 0
) -> float | None:
    """The time until all trials have ended, if as many run at once as now.

    A trial that has not started is expected to train as many epochs as the ended ones did on
    average, a started one to its end. Early stopping makes it shorter, never longer.

    Args:
        trials: each with its seconds per epoch; None before its first.
    """
    known = [seconds for _, seconds in trials if seconds is not None]
    unfinished = [pair for pair in trials if not pair[0].status.has_ended]
    if not (unfinished or num_missing):
        return 0.0
    if not known:
        return None
    mean_seconds = fmean(known)
    ended = [trial.epochs for trial, _ in trials if trial.status.has_ended]
    expected_epochs = fmean(ended) if ended else total_epochs
    started = [
        (total_epochs - trial.epochs) * (seconds or mean_seconds)
        for trial, seconds in unfinished
        if trial.reason != WAITING
    ]
    num_waiting = num_missing + len(unfinished) - len(started)
    total = sum(started) + num_waiting * expected_epochs * mean_seconds
    return max(total / max(1, len(started)), *started, 0.0)


def describe_progress(progress: Progress) -> str:
    """One line: trials, best so far, driver and time left."""
    parts = []
    if progress.kind == "study":
        total = len(progress.trials) + progress.num_missing
        parts.append(f"{progress.num_ended} of {total} trials ended")
    epochs = sum(trial.epochs for trial in progress.trials)
    of_total = f" of {progress.total_epochs}" if progress.kind == "run" else ""
    parts.append(f"{epochs}{of_total} epochs")
    if best := progress.best:
        name = f"{best.name}, " if progress.kind == "study" else ""
        parts.append(f"best Jaccard {best.jaccard:.4f} ({name}epoch {best.best_epoch})")
    parts.append(_describe_state(progress))
    return "; ".join(parts)


def _describe_state(progress: Progress) -> str:
    if progress.seconds_left == 0:
        return "ended"
    if progress.host is None:
        return "stopped (no driver)"
    if progress.seconds_left is None:
        return f"running on {progress.host}"
    left = timedelta(seconds=round(progress.seconds_left))
    return f"running on {progress.host}, about {left} left"


def _seconds_per_epoch(metrics: Sequence[Mapping[str, Any]]) -> float | None:
    epochs = [line for line in metrics if line["kind"] == "epoch"][-NUM_RECENT_EPOCHS:]
    if not epochs:
        return None
    seconds = fmean(map(epoch_seconds, epochs))
    return seconds if math.isfinite(seconds) else None

"""A trial of a study, and how it ended.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from segan import storage
from segan.errors import NotFoundError
from segan.runs.run import Run
from segan.utils.models import FrozenModel

if TYPE_CHECKING:
    from segan.config import Config

RESULT_FILE = "result.json"  # in the run of a trial that has ended


class TrialStatus(enum.StrEnum):
    """How a trial ended."""

    FINISHED = "finished"
    PRUNED = "pruned"  # stopped early by ASHA
    DIVERGED = "diverged"  # a loss or gradient was NaN or infinite
    FAILED = "failed"  # its last attempt ended with an error; it is tried again
    UNFINISHED = "unfinished"  # not started, running or interrupted

    @property
    def has_ended(self) -> bool:
        """Whether this is a verdict on the trial's parameters.

        An error of storage, a lost node or a killed process is none: the trial is tried again.
        """
        return self not in (TrialStatus.UNFINISHED, TrialStatus.FAILED)


@dataclass(frozen=True)
class TrialResult:
    """The content of result.json.

    Attributes:
        reason: explains a status other than finished; may be empty.
        seconds: duration of the training.
    """

    status: TrialStatus = TrialStatus.UNFINISHED
    reason: str = ""
    seconds: float = 0.0

    @property
    def has_ended(self) -> bool:
        return self.status.has_ended


class _StoredResult(FrozenModel):
    """What result.json has to contain."""

    status: TrialStatus
    reason: str
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A run of a study.

    Attributes:
        parameters: what the trial changes in the study's configuration, by `section.key`.
    """

    name: str
    parameters: dict[str, Any]
    run: Run

    def build_config(self, config: Config) -> Config:
        """The study's configuration with this trial's parameters."""
        return config.with_overrides(self.parameters)

    def epoch_metrics(self) -> list[dict[str, Any]]:
        """The metrics of its validated epochs, in order."""
        return [line for line in self.run.metrics() if "jaccard" in line]

    def result(self) -> TrialResult:
        """How the trial ended; its status is unfinished while it has not."""
        return read_result(self.run.uri)

    def mark_done(self, status: TrialStatus, seconds: float, reason: str = "") -> None:
        """Writes result.json."""
        result = TrialResult(status, reason, round(seconds, 1))
        self.run.fence()
        storage.write_json(storage.join(self.run.uri, RESULT_FILE), asdict(result))

    def clear_result(self) -> None:
        """Deletes result.json, so that the trial is unfinished again."""
        self.run.fence()
        storage.delete_file(storage.join(self.run.uri, RESULT_FILE))


def read_result(run_uri: str) -> TrialResult:
    """How the trial of a run ended; raises StorageError where result.json is not readable."""
    name = storage.join(run_uri, RESULT_FILE)
    expected = (
        "the result of a trial, or one of an older version of segan; delete it to train the trial "
        "again"
    )
    try:
        return TrialResult(**vars(storage.read_model(name, _StoredResult, expected)))
    except NotFoundError:
        return TrialResult()

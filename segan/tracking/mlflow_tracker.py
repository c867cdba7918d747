"""Runs and studies in MLflow; a study's trials are child runs of the study."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests import RequestException

from segan.errors import UsageError
from segan.runs.trial import TrialStatus
from segan.tracking.stored import MetricPoint, TrackedItem
from segan.tracking.tracker import ItemWriter

DEFAULT_EXPERIMENT = "segan"
URI_TAG, POSITION_TAG, STATUS_TAG = "segan.uri", "segan.samples", "segan.status"
_TAGS = {"git_commit": "mlflow.source.git.commit"}  # those that MLflow has a name for
_STATUS = {
    TrialStatus.FAILED: "FAILED",
    TrialStatus.DIVERGED: "FAILED",
    TrialStatus.UNFINISHED: "KILLED",
}
MAX_BATCH = {"params": 100, "metrics": 1000}  # of one request
MAX_PARAM_CHARACTERS = 500  # the limit of MLflow's older servers

T = TypeVar("T")


class MlflowTracker:
    """An experiment of an MLflow server: MLFLOW_EXPERIMENT_NAME, by default `segan`."""

    errors: tuple[type[Exception], ...] = (MlflowException, RequestException)

    def __init__(self, uri: str | None):
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise UsageError(
                "tracker mlflow: no server given; set MLFLOW_TRACKING_URI, or tracking.mlflow in "
                "the configuration, to its URI, such as http://127.0.0.1:5000"
            )
        # MLflow would repeat a request for minutes; what was not sent is sent at the next update.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self.uri, self.client = uri, MlflowClient(uri)
        self._experiment = ""

    def open_item(self, item: TrackedItem, parent: ItemWriter | None) -> MlflowWriter:
        experiment = self._experiment or self._find_experiment()
        self._experiment = experiment
        same_uri = f'tags.`{URI_TAG}` = "{item.uri}"'
        found = self.client.search_runs([experiment], same_uri, max_results=1)
        if found:
            run = found[0]
            self.client.update_run(run.info.run_id, "RUNNING")
            position = int(run.data.tags.get(POSITION_TAG, -1))
            return MlflowWriter(self, run.info.run_id, experiment, position, item.started_at)
        tags = {_TAGS.get(name, f"segan.{name}"): text for name, text in item.tags.items()}
        tags |= {"segan.kind": item.kind}
        if parent:
            tags["mlflow.parentRunId"] = parent.id
        started_at_ms = int(1000 * item.started_at)
        run = self.client.create_run(experiment, started_at_ms, tags, item.name)
        writer = MlflowWriter(self, run.info.run_id, experiment, -1, item.started_at)
        params = [
            Param(key, str(value)[:MAX_PARAM_CHARACTERS]) for key, value in item.params.items()
        ]
        for batch in _batches(params, MAX_BATCH["params"]):
            self.client.log_batch(writer.id, params=batch)
        return writer

    def _find_experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self.client.create_experiment(name))


class MlflowWriter:
    """A run of MLflow."""

    def __init__(
        self, tracker: MlflowTracker, run: str, experiment: str, position: int, started_at: float
    ):
        self._client, self.id, self.position = tracker.client, run, position
        self._started_at = started_at
        is_http = tracker.uri.startswith("http")
        self.url = f"{tracker.uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}"
        self.url = self.url if is_http else ""

    def log(self, points: Sequence[MetricPoint]) -> None:
        # The times follow from the points alone, so MLflow drops those that it is sent again.
        metrics = [
            Metric(name, value, int(1000 * (self._started_at + point.seconds)), point.samples)
            for point in points
            for name, value in point.values.items()
        ]
        for batch in _batches(metrics, MAX_BATCH["metrics"]):
            self._client.log_batch(self.id, metrics=batch)
        if points:
            self.position = points[-1].samples
            self._client.log_batch(self.id, tags=[RunTag(POSITION_TAG, str(self.position))])

    def finish(self, status: TrialStatus, files: Mapping[str, bytes]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            if files:
                self._client.log_artifacts(self.id, folder)
        self._client.set_tag(self.id, STATUS_TAG, status)
        self._client.set_terminated(self.id, _STATUS.get(status, "FINISHED"))


def _batches(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]

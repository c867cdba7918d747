"""Runs and studies in Weights & Biases; a study and its trials are a group."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import wandb
from wandb.errors import Error

from segan.runs.trial import TrialStatus
from segan.tracking.stored import MetricPoint, TrackedItem
from segan.tracking.tracker import ItemWriter

DEFAULT_PROJECT = "segan"
_EXIT_CODES = {TrialStatus.FAILED: 1, TrialStatus.DIVERGED: 1, TrialStatus.UNFINISHED: 255}


class WandbTracker:
    """A project of W&B: `tracking.wandb` or WANDB_PROJECT, by default `segan`.

    With WANDB_MODE=offline each call writes a run's whole history into a new folder below
    WANDB_DIR, as the server's is not known; `wandb sync` of the latest folder uploads it.
    """

    errors: tuple[type[Exception], ...] = (Error, OSError)

    def __init__(self, project: str | None):
        self.project = project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT

    def open_item(self, item: TrackedItem, parent: ItemWriter | None) -> WandbWriter:
        run = wandb.init(
            project=self.project,
            id=hashlib.sha256(item.uri.encode()).hexdigest()[:16],
            name=item.name,
            group=item.group,
            job_type=item.kind,
            config={**item.params, **{f"segan.{k}": text for k, text in item.tags.items()}},
            resume="allow",
            reinit="create_new",
            # Neither this process's output nor its machine's load is part of the run.
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, disable_git=True
            ),
        )
        return WandbWriter(run)


class WandbWriter:
    """A run of W&B."""

    def __init__(self, run: wandb.Run):
        self._run, self.id = run, str(run.id)
        self.url = "" if run.offline else str(run.url or "")
        self.position = int(run.starting_step) - 1

    def log(self, points: Sequence[MetricPoint]) -> None:
        for point in points:
            self._run.log(point.values, step=point.samples)
            self.position = point.samples

    def finish(self, status: TrialStatus, files: Mapping[str, bytes]) -> None:
        self._run.summary["status"] = str(status)
        with tempfile.TemporaryDirectory() as folder:
            artifact = wandb.Artifact(f"{self.id}-files", "segan")
            for name, content in files.items():
                path = Path(folder) / name
                path.write_bytes(content)
                artifact.add_file(str(path), name)
            self._run.log_artifact(artifact)
            self._run.finish(_EXIT_CODES.get(status, 0))

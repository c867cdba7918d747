"""Where a run starts: its checkpoint to resume from and the rows that are left. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from segan import storage
from segan.config import Config
from segan.data.records.format import Manifest
from segan.data.records.versions import read_version
from segan.data.stream.batches import StreamSpec
from segan.data.stream.sampler import DeterministicSampler
from segan.errors import StorageError, UsageError
from segan.runs.checkpoint import MANIFEST_FILE, Checkpoint
from segan.runs.run import Run
from segan.runs.transfer import verify_checkpoint
from segan.runs.warm_start import InitialWeights, find_initial_weights, require_unchanged
from segan.training.metrics import LoopState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """Where a training starts.

    Attributes:
        spec: the rows that are left of the run.
        checkpoint: the state to start from, at `spec.start`; None for a new run.
        initial_weights: of a new run; None for random ones.
    """

    spec: StreamSpec
    checkpoint: Checkpoint | None = None
    initial_weights: InitialWeights | None = None

    @property
    def is_finished(self) -> bool:
        """Whether no step is left and the last one has been validated.

        An elastic group that grows can find less than one step left that a smaller group, which
        saved the checkpoint, would still have taken.
        """
        return self.spec.is_exhausted and (
            self.checkpoint is None or "jaccard" in self.checkpoint.info.metrics
        )

    def with_world_size(self, world_size: int) -> ResumePoint:
        """Returns the same start for another number of workers."""
        return replace(self, spec=self.spec.with_world_size(world_size))


def check_config(config: Config, run: Run, fingerprint: str | None = None) -> StreamSpec:
    """Checks the configuration against the records; returns the rows of the whole run.

    Reads no image and no weights, so a mistake is reported before any long work. A run that has
    begun reads the records that it began with, whatever has been ingested since.

    Args:
        fingerprint: of the records of a run that has not begun; None for the newest.

    Raises:
        UsageError: the configuration does not fit the records or the model of `training.init`, or
            the records of the run are not there.
        StorageError: the records or the run cannot be read.
    """
    storage.check_access(run.uri)
    recorded = run.fingerprint()
    manifest = read_version(config.data.records, recorded or fingerprint)
    _check_records(config, manifest)
    if recorded is None:
        find_initial_weights(config)
    return StreamSpec(
        config.data.records,
        DeterministicSampler(manifest, config.data.train, config.training.seed),
        config.training.epochs,
        0,
        config.training.batch_size,
        config.cluster.workers,
        run.num_lanes() or config.cluster.workers,
    )


def resolve_resume(
    config: Config,
    run: Run,
    warn: Callable[[str], None] = logger.warning,
    fingerprint: str | None = None,
) -> ResumePoint:
    """Finds where a run starts: at its newest complete checkpoint, or at the first row.

    Reads that checkpoint's files, so one process calls this and passes the result to the ranks.

    Args:
        warn: receives a line for each checkpoint that is skipped.
        fingerprint: see `check_config`.

    Raises:
        UsageError: the configuration does not fit the records, or those of the run are not there.
        StorageError: storage cannot be read, or the run has checkpoints and none is usable.
    """
    spec = check_config(config, run, fingerprint)
    checkpoint, recorded = find_resume_checkpoint(run, warn), run.recorded_identity()
    if checkpoint:
        return ResumePoint(replace(spec, start=checkpoint.samples), checkpoint)
    initial_weights = find_initial_weights(config, spec.sampler.manifest.labels)
    if initial_weights and recorded.get("training.init") == config.training.init:
        require_unchanged(initial_weights, recorded, run.uri)
    return ResumePoint(spec, initial_weights=initial_weights)


def create_or_resume(config: Config, run: Run, resume_point: ResumePoint) -> None:
    """Writes run.json, or checks that a run goes on as it began; see `Run.create_or_resume`."""
    initial = resume_point.initial_weights
    fingerprint = resume_point.spec.sampler.manifest.fingerprint
    identity = initial.identity() if initial else None
    run.create_or_resume(config, fingerprint, identity, resume_point.spec.lanes)


def announce_initial_weights(resume_point: ResumePoint) -> None:
    """Says which weights a run takes from a model, if it begins from one."""
    if resume_point.initial_weights:
        logger.info(resume_point.initial_weights.describe())


def find_resume_checkpoint(run: Run, warn: Callable[[str], None]) -> Checkpoint | None:
    """Returns the newest checkpoint whose manifest and files are intact; None if there is none.

    Args:
        warn: receives a line for each checkpoint that is skipped.

    Raises:
        StorageError: the run has checkpoints, and none is usable.
    """
    complete, errors = run.scan_checkpoints()
    for checkpoint in reversed(complete):
        error = _find_error(checkpoint)
        if not error:
            for name, reason in errors.items():
                warn(f"{run}: checkpoint {name} is skipped: {reason}")
            return checkpoint
        if not storage.exists(storage.join(checkpoint.uri, MANIFEST_FILE)):
            return find_resume_checkpoint(run, warn)  # deleted since it was listed
        errors[checkpoint.name] = error
    if errors:
        reasons = ", ".join(f"{name}: {reason}" for name, reason in errors.items())
        raise StorageError(
            f"{run}: no checkpoint is usable ({reasons}); restore one from a copy, or start again "
            "under another name"
        )
    return None


def _find_error(checkpoint: Checkpoint) -> str:
    """Says why a training cannot resume from a checkpoint; "" if it can."""
    try:
        LoopState.from_dict(checkpoint.info.progress or {})
        checkpoint.config  # noqa: B018 - parses it
    except (LookupError, TypeError, ValueError, UsageError, StorageError):
        return "written by an older segan version; cannot be resumed"
    return "; ".join(file.error for file in verify_checkpoint(checkpoint) if file.error)


def _check_records(config: Config, manifest: Manifest) -> None:
    side, frame = config.augment.crop, min(manifest.height, manifest.width)
    if side > frame:
        raise UsageError(
            f"augment.crop {side}: the records' frames are {manifest.width} x {manifest.height} "
            f"pixels; use a crop of at most {frame}, or ingest at a larger size"
        )
    if config.network.classes != manifest.classes:
        raise UsageError(
            f"network.classes {config.network.classes}: the records' masks have {manifest.classes} "
            f"({', '.join(manifest.labels)}); use network.classes={manifest.classes}"
        )
    for split in (config.data.train, config.data.validation):
        if manifest.num_rows(split) == 0:
            raise UsageError(f"split {split!r}: the records have no image in it")

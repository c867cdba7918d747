"""A training run in storage: its configuration, metrics and checkpoints.

    <run>/run.json  metrics/ or metrics.jsonl  tensorboard/
          checkpoints/epoch_00042/{..., manifest.json}

A checkpoint is saved after an epoch's validation (epoch_00042) or within an epoch (step_0000420).
Imports neither torch nor Ray.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from segan import storage
from segan.errors import CorruptedError, NotFoundError, StorageError, UsageError
from segan.runs.checkpoint import (
    BEST,
    LATEST,
    MANIFEST_FILE,
    Checkpoint,
    CheckpointInfo,
    make_manifest,
    open_checkpoint,
    select_best,
    select_latest,
)
from segan.runs.identity import config_identity, require_same
from segan.runs.metrics_file import read_metrics
from segan.runs.provenance import git_commit, package_versions
from segan.storage.lease import no_fence
from segan.utils.models import FrozenModel

if TYPE_CHECKING:
    from segan.config import Config

RUN_FILE = "run.json"
INIT_PREFIX = "init."  # of the keys of the weights that a run began from
LANES_KEY = "stream.lanes"  # of `segan.data.stream.lanes`
LANES_BEFORE = 1  # of runs that do not record it: their order is that of one lane
MAX_LANES = 1 << 20
PROFILE_FOLDER = "profile"
REPORT_FILES = ("report.json", "report.html")  # of a run, a study or an ensemble


class RunDescription(FrozenModel):
    """The content of run.json.

    Attributes:
        identity: the values that a resumed run must share, by `section.key`.
        config: the configuration, by section and key.
        hardware: of the workers of the first start; None before it has recorded them.
        device: what the latest start computed with; None before it has recorded it.
    """

    identity: dict[str, Any]
    config: dict[str, dict[str, Any]]
    started_at: str
    git_commit: str | None = None
    packages: dict[str, str] | None = None
    python: str | None = None
    hardware: str | None = None
    device: dict[str, Any] | None = None


class Run:
    """A run at a URI, which need not exist yet."""

    def __init__(self, uri: str, fence: Callable[[], None] = no_fence):
        """
        Args:
            fence: called before anything is written or deleted; raises where another process has
                taken the run over.
        """
        self.uri, self.fence = storage.normalise(uri), fence

    def __str__(self) -> str:
        return self.uri

    def create_or_resume(
        self,
        config: Config,
        fingerprint: str,
        init: Mapping[str, Any] | None = None,
        lanes: int = LANES_BEFORE,
    ) -> None:
        """Writes run.json, or checks that an existing run has the same configuration and records.

        Args:
            init: the checksums of the weights that it begins from, from
                `segan.runs.warm_start.InitialWeights.identity`; None for random weights, or for a
                run that goes on from a checkpoint.
            lanes: of its stream.

        Raises:
            UsageError: the run exists with another configuration or other records.
        """
        name = storage.join(self.uri, RUN_FILE)
        identity = _identity(config) | {"fingerprint": fingerprint, LANES_KEY: lanes}
        identity |= dict(init or {})
        if recorded := self.recorded_identity():
            if init is None:  # its weights are those of the checkpoint
                identity |= {k: v for k, v in recorded.items() if k.startswith(INIT_PREFIX)}
            # A key that the run was started without has its default value.
            found = _identity(type(config)()) | {LANES_KEY: LANES_BEFORE} | recorded
            advice = "resume with the same values, or use another URI"
            require_same(identity, found, self.uri, advice)
            return
        storage.write_json(
            name,
            {
                "identity": identity,
                "config": config.model_dump(mode="json"),
                "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "git_commit": git_commit(),
                "packages": package_versions(),
                "python": platform.python_version(),
                "hardware": None,  # this and the next are recorded by the workers
                "device": None,
            },
        )

    def fingerprint(self) -> str | None:
        """Of the records that the run began with, which are those of its later starts too.

        None before the first start; raises StorageError where run.json is not readable.
        """
        return self.recorded_identity().get("fingerprint")

    def num_lanes(self) -> int | None:
        """The lanes of the stream that the run began with; None before the first start.

        Raises StorageError where run.json is not readable.
        """
        recorded = self.recorded_identity()
        lanes = recorded.get(LANES_KEY, LANES_BEFORE)
        if not isinstance(lanes, int) or not 1 <= lanes <= MAX_LANES:
            raise CorruptedError(
                f"{storage.join(self.uri, RUN_FILE)}: {LANES_KEY}: expected a number from 1 to "
                f"{MAX_LANES}, found {lanes!r}"
            )
        return lanes if recorded else None

    def recorded_identity(self) -> dict[str, Any]:
        """The values that the run was started with; empty before the first start.

        Raises StorageError where run.json is not readable.
        """
        name = storage.join(self.uri, RUN_FILE)
        if not storage.exists(name):
            return {}
        return dict(self.description()["identity"])

    def record_hardware(self, hardware: str, device: dict[str, Any]) -> None:
        """Adds to run.json the hardware of the first start and the device of the latest one."""
        description = self.description()
        recorded = {"hardware": description["hardware"] or hardware, "device": device}
        if description | recorded != description:
            self.fence()
            storage.write_json(storage.join(self.uri, RUN_FILE), description | recorded)

    def description(self) -> dict[str, Any]:
        """The content of run.json; raises StorageError where there is no run."""
        name = storage.join(self.uri, RUN_FILE)
        if not storage.exists(name):
            raise StorageError(f"{self.uri}: no run here (no {RUN_FILE})")
        expected = "the description of a run; use another URI"
        return storage.read_model(name, RunDescription, expected).model_dump()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of the run's metrics, in order; empty before the first was written."""
        return read_metrics(self.uri)

    def validations(self) -> list[dict[str, Any]]:
        """The metrics of the validated epochs, in order."""
        lines = self.metrics()
        return [line for line in lines if line["kind"] == "epoch" and "jaccard" in line]

    def checkpoints(self) -> list[Checkpoint]:
        """The checkpoints with a valid manifest, oldest first."""
        return self.scan_checkpoints()[0]

    def scan_checkpoints(self) -> tuple[list[Checkpoint], dict[str, str]]:
        """Returns the checkpoints with a valid manifest, oldest first, and the others' errors.

        A folder without a manifest is in neither: its save was interrupted.
        """
        folder = storage.join(self.uri, "checkpoints")
        names = [n for n in storage.iter_names(folder, f"/{MANIFEST_FILE}") if n.count("/") == 1]
        complete, corrupted = [], {}
        for name in (name.split("/")[0] for name in names):
            try:
                complete.append(open_checkpoint(storage.join(folder, name)))
            except CorruptedError as error:
                corrupted[name] = str(error)
            except NotFoundError:  # a running training has deleted it since the listing
                continue
        # The last validation of an elastic run can follow a checkpoint of the same step.
        return sorted(complete, key=lambda c: (c.samples, c.is_validated)), corrupted

    def latest_checkpoint(self) -> Checkpoint | None:
        return select_latest(self.checkpoints())

    def best_checkpoint(self) -> Checkpoint | None:
        """The checkpoint with the best validation Jaccard; ties go to the earliest."""
        return select_best(self.checkpoints())

    def get_checkpoint(self, name: str) -> Checkpoint:
        """The complete checkpoint of a name, `best` or `latest`; raises StorageError without it."""
        checkpoints = self.checkpoints()
        if not checkpoints:
            raise StorageError(f"{self.uri}: neither a checkpoint nor a run with a complete one")
        aliases = {BEST: select_best(checkpoints), LATEST: select_latest(checkpoints)}
        by_name = {c.name: c for c in checkpoints} | {alias: c for alias, c in aliases.items() if c}
        if name not in by_name:
            raise StorageError(
                f"{self.uri}: no complete checkpoint {name!r}; expected one of {', '.join(by_name)}"
            )
        return by_name[name]

    def save_checkpoint(
        self,
        name: str,
        files: Mapping[str, bytes | Sequence[memoryview]],
        info: CheckpointInfo,
    ) -> Checkpoint:
        """Writes a checkpoint, its manifest last; replaces an incomplete one of the same name.

        Args:
            files: the content of each file, as one or several buffers.
        """
        uri = storage.join(self.uri, "checkpoints", name)
        self.fence()
        storage.delete_folder(uri)
        entries = {}
        for file, content in files.items():
            buffers = [content] if isinstance(content, bytes) else content
            sha, size = storage.write_buffers(storage.join(uri, file), buffers)
            entries[file] = {"sha256": sha, "size": size}
        self.fence()
        storage.write_json(storage.join(uri, MANIFEST_FILE), make_manifest(entries, info))
        return Checkpoint(uri, name, entries, info)

    def prune_checkpoints(self, latest: Checkpoint) -> None:
        """Deletes every checkpoint but the best, the latest and the one before the latest.

        The one before the latest is the fallback if the latest turns out to be corrupted.

        Args:
            latest: the checkpoint that was just saved. Later ones belong to a training that was
                resumed from an earlier checkpoint, incomplete ones to interrupted saves.
        """
        complete = [c for c in self.checkpoints() if c.samples <= latest.samples]
        kept = {c.name for c in (select_best(complete), *complete[-2:]) if c}
        folder = storage.join(self.uri, "checkpoints")
        names = [file.name for file in storage.list_files(folder)]
        for name in sorted({n.split("/")[0] for n in names if "/" in n} - kept):
            uri = storage.join(folder, name)
            self.fence()
            # The manifest first, so that a partly deleted checkpoint does not look complete.
            if f"{name}/{MANIFEST_FILE}" in names:
                storage.delete_file(storage.join(uri, MANIFEST_FILE))
            storage.delete_folder(uri)


def find_checkpoint(uri: str, name: str | None = None) -> Checkpoint:
    """The checkpoint at a URI, or a checkpoint of the run at that URI.

    Args:
        uri: of a run or a checkpoint; <run>/checkpoints/best and .../latest are accepted too.
        name: which checkpoint of a run: its name, `latest`, or `best`, which is the default.

    Raises:
        StorageError: there is neither a run nor a checkpoint at `uri`.
        UsageError: `uri` is one checkpoint and `name` another.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    folder, _, last = uri.rpartition("/")
    if folder.endswith("/checkpoints") and last in (BEST, LATEST):
        checkpoint = Run(folder.removesuffix("/checkpoints")).get_checkpoint(last)
        names = {last, checkpoint.name}
    elif storage.exists(storage.join(uri, MANIFEST_FILE)):
        checkpoint = open_checkpoint(uri)
        names = {checkpoint.name}
    else:
        return Run(uri).get_checkpoint(name or BEST)
    if name is not None and name not in names:
        raise UsageError(f"{uri}: a checkpoint, but --name asks for {name!r}; give the run's URI")
    return checkpoint


def _identity(config: Config) -> dict[str, Any]:
    """The values that a resumed run must share: all that change what it computes."""
    identity = config_identity(config, "cluster", "search", "ablation")
    return identity | {"cluster.workers": config.cluster.workers}

"""A run in storage: what it was asked for, its metrics, and its checkpoints.

    <run>/run.json  metrics.jsonl  tensorboard/  checkpoints/epoch_00042/{..., manifest.json}

A checkpoint is of the end of an epoch, after its validation, or of a step within one, step_0000420.
Its manifest, with the checksum and size of each file, is written last and checked on load, so half
a checkpoint is never taken for a whole one. Needs neither torch nor Ray.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from segan import storage
from segan.errors import CorruptedError, NotFoundError, StorageError, UsageError
from segan.runs.checkpoint import (
    BEST,
    LATEST,
    MANIFEST_FILE,
    Checkpoint,
    make_manifest,
    open_checkpoint,
    select_best,
    select_latest,
)
from segan.runs.provenance import git_commit, package_versions

if TYPE_CHECKING:
    from segan.config import Config

RESULT_FILE = "result.json"  # in the run of a study's trial that is over
REPORT_FILES = ("report.json", "report.html")  # of a run, a study or an ensemble


class Run:
    """One training's place in storage."""

    def __init__(self, uri: str):
        self.uri = storage.normalise(uri)

    def __str__(self) -> str:
        return self.uri

    def create_or_resume(self, config: Config, fingerprint: str) -> None:
        """Writes run.json, or goes on with a run of this name and the same configuration.

        Raises:
            UsageError: the name is in use with another configuration or other records.
        """
        name = storage.join(self.uri, "run.json")
        identity = _identity(config) | {"fingerprint": fingerprint}
        if storage.exists(name):
            found = storage.read_json(name)
            if not (isinstance(found, dict) and "identity" in found):
                raise StorageError(f"{name}: not a run's description; use another name")
            # A run from before a key was there has its default.
            self._require_same(identity, _identity(type(config)()) | found["identity"])
            return
        storage.write_json(
            name,
            {
                "identity": identity,
                "config": config.model_dump(mode="json"),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "git_commit": git_commit(),
                "packages": package_versions(),
                "python": platform.python_version(),
                "hardware": None,  # it is the workers' to say, not the driver's
            },
        )

    def record_hardware(self, hardware: str) -> None:
        """Adds the machine to run.json, unless the run began on another."""
        found = self.description()
        if found["hardware"] is None:
            storage.write_json(storage.join(self.uri, "run.json"), found | {"hardware": hardware})

    def description(self) -> dict[str, Any]:
        """run.json; raises StorageError where there is no run."""
        name = storage.join(self.uri, "run.json")
        if not storage.exists(name):
            raise StorageError(f"{self.uri}: no run here (no run.json)")
        found: dict[str, Any] = storage.read_json(name)
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none before the first was written."""
        name = storage.join(self.uri, "metrics.jsonl")
        if not storage.exists(name):
            return []
        return [json.loads(line) for line in storage.read_bytes(name).splitlines()]

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        storage.write_bytes(storage.join(self.uri, "metrics.jsonl"), text.encode())

    def checkpoints(self) -> list[Checkpoint]:
        """Those whose manifest is whole, oldest first."""
        return self.scan_checkpoints()[0]

    def scan_checkpoints(self) -> tuple[list[Checkpoint], dict[str, str]]:
        """The checkpoints whose manifest is whole, oldest first, and what is wrong with others.

        A folder without a manifest is neither: that save was never done.
        """
        folder = storage.join(self.uri, "checkpoints")
        names = [n for n in storage.iter_names(folder, f"/{MANIFEST_FILE}") if n.count("/") == 1]
        complete, corrupted = [], {}
        for name in (name.split("/")[0] for name in names):
            try:
                complete.append(open_checkpoint(storage.join(folder, name)))
            except CorruptedError as error:
                corrupted[name] = str(error)
            except NotFoundError:  # a training has removed it since it was listed
                continue
        return sorted(complete, key=lambda c: c.samples), corrupted

    def latest_checkpoint(self) -> Checkpoint | None:
        return select_latest(self.checkpoints())

    def best_checkpoint(self) -> Checkpoint | None:
        """The checkpoint of the best validation Jaccard, the earliest of equals."""
        return select_best(self.checkpoints())

    def get_checkpoint(self, name: str) -> Checkpoint:
        """A whole checkpoint by its name, or as `best` or `latest`."""
        found = self.checkpoints()
        if not found:
            raise StorageError(f"{self.uri}: neither a checkpoint nor a run with a whole one")
        aliases = {BEST: select_best(found), LATEST: select_latest(found)}
        by_name = {c.name: c for c in found} | {mark: c for mark, c in aliases.items() if c}
        if name not in by_name:
            raise StorageError(
                f"{self.uri}: no whole checkpoint {name!r}; expected one of {', '.join(by_name)}"
            )
        return by_name[name]

    def save_checkpoint(
        self, name: str, files: Mapping[str, bytes], info: Mapping[str, Any]
    ) -> Checkpoint:
        """Writes a checkpoint, its manifest last, over what half of one may lie there."""
        uri = storage.join(self.uri, "checkpoints", name)
        storage.delete_folder(uri)
        for file, content in files.items():
            storage.write_bytes(storage.join(uri, file), content)
        sums = {f: {"sha256": storage.sha256(c), "size": len(c)} for f, c in files.items()}
        storage.write_json(storage.join(uri, MANIFEST_FILE), make_manifest(sums, info))
        return Checkpoint(uri, name, sums, info)

    def prune_checkpoints(self, latest: Checkpoint) -> None:
        """Deletes all but the best checkpoint, the latest, and the one before it.

        The last of these stands in for a latest that turns out torn.

        Args:
            latest: the one that was just saved. What is beyond it was passed over when the run
                went on from before, and half ones are of saves that were never done.
        """
        complete = [c for c in self.checkpoints() if c.samples <= latest.samples]
        kept = {c.name for c in (select_best(complete), *complete[-2:]) if c}
        folder = storage.join(self.uri, "checkpoints")
        names = [file.name for file in storage.list_files(folder)]
        for name in sorted({n.split("/")[0] for n in names if "/" in n} - kept):
            uri = storage.join(folder, name)
            # The manifest first: what is half deleted must not look whole.
            if f"{name}/{MANIFEST_FILE}" in names:
                storage.delete_file(storage.join(uri, MANIFEST_FILE))
            storage.delete_folder(uri)

    def _require_same(self, expected: dict[str, Any], found: dict[str, Any]) -> None:
        for key in expected:
            if expected[key] != found.get(key):
                raise UsageError(
                    f"{self.uri}: this run was started with {key} {found.get(key)!r}, now asked "
                    f"for {expected[key]!r}; use the same to go on with it, or another name"
                )


def find_checkpoint(uri: str, name: str | None = None) -> Checkpoint:
    """A checkpoint by its own URI, or one of a run's by the run's.

    Args:
        uri: <run>/checkpoints/best and .../latest are taken too.
        which: of a run's: a name, `latest`, or `best`, which is meant where nothing is said.

    Raises:
        StorageError: there is neither at `uri`.
        UsageError: `uri` and `which` name two.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    folder, _, last = uri.rpartition("/")
    if folder.endswith("/checkpoints") and last in (BEST, LATEST):
        found = Run(folder.removesuffix("/checkpoints")).get_checkpoint(last)
        names = {last, found.name}
    elif storage.exists(storage.join(uri, MANIFEST_FILE)):
        found = open_checkpoint(uri)
        names = {found.name}
    else:
        return Run(uri).get_checkpoint(name or BEST)
    if name is not None and name not in names:
        raise UsageError(f"{uri}: a checkpoint, and {name!r} asks for another; give the run's URI")
    return found


def _identity(config: Config) -> dict[str, Any]:
    """What must stay the same for a run to go on: all that changes what it computes."""
    tree = config.model_dump(
        mode="json",
        exclude={
            "cluster": True,
            "search": True,
            "ablation": True,
            "data": {"records"},
            "training": {"checkpoint_every_steps"},
            "evaluation": {"report"},
        },
    )
    flat = {f"{section}.{key}": v for section, branch in tree.items() for key, v in branch.items()}
    return flat | {"cluster.workers": config.cluster.workers}

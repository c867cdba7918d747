"""A run in storage: what it was asked for, its metrics, and its checkpoints.

    <run>/run.json  metrics.jsonl  tensorboard/  checkpoints/epoch_00042/{..., manifest.json}

A checkpoint's manifest, with the checksum and size of each file, is written last and checked on
load, so half a checkpoint is never taken for a whole one. Needs neither torch nor Ray.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from segan import storage
from segan.config import Config, parse_config
from segan.errors import StorageError, UsageError

MANIFEST = "manifest.json"
SEGMENTOR = "segmentor.safetensors"
PACKAGES = ("segan", "torch", "ray", "pyarrow", "numpy", "pillow")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its files' checksums and what it is.

    Attributes:
        name: of its folder, epoch_00042.
        info: epochs done, samples seen, validation metrics, and the run's config.
    """

    uri: str
    name: str
    files: Mapping[str, Mapping[str, Any]]
    info: Mapping[str, Any]

    @property
    def samples(self) -> int:
        return int(self.info["samples"])

    @property
    def jaccard(self) -> float:
        return float(self.info["metrics"]["jaccard"])

    @property
    def threshold(self) -> float:
        """The best one on validation, in (0, 1)."""
        return float(self.info["metrics"]["threshold"])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the frames that it was trained on."""
        return int(self.info["frame"]["width"]), int(self.info["frame"]["height"])

    @property
    def config(self) -> Config:
        return parse_config(dict(self.info["config"]))

    def read(self, name: str) -> bytes:
        """A file's content; raises StorageError where it is not the one that was written."""
        content = storage.read_bytes(storage.join(self.uri, name))
        expected = self.files[name]
        if storage.sha256(content) != expected["sha256"]:
            raise StorageError(
                f"{storage.join(self.uri, name)}: {len(content)} bytes that do not match the "
                f"manifest's checksum ({expected['size']} bytes expected); use another checkpoint"
            )
        return content


class Run:
    """One training's place in storage."""

    def __init__(self, uri: str):
        self.uri = storage.normalise(uri)

    def __str__(self) -> str:
        return self.uri

    def begin(self, config: Config, fingerprint: str, hardware: str) -> None:
        """Writes run.json, or goes on with a run of this name and the same configuration.

        Raises:
            UsageError: the name is in use with another configuration or other records.
        """
        name = storage.join(self.uri, "run.json")
        wanted = _identity(config) | {"fingerprint": fingerprint}
        if storage.exists(name):
            found = storage.read_json(name)
            if not (isinstance(found, dict) and "identity" in found):
                raise StorageError(f"{name}: not a run's description; use another name")
            self._compare(wanted, found["identity"])
            return
        storage.write_json(
            name,
            {
                "identity": wanted,
                "config": config.model_dump(mode="json"),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "git_commit": _git_commit(),
                "packages": _versions(),
                "python": platform.python_version(),
                "hardware": hardware,
            },
        )

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
        """The whole checkpoints, oldest first."""
        folder = storage.join(self.uri, "checkpoints")
        names = [n for n in storage.iter_names(folder, f"/{MANIFEST}") if n.count("/") == 1]
        return [open_checkpoint(storage.join(folder, name.split("/")[0])) for name in names]

    def latest(self) -> Checkpoint | None:
        return _latest(self.checkpoints())

    def best(self) -> Checkpoint | None:
        """The checkpoint of the best validation Jaccard, the earliest of equals."""
        return _best(self.checkpoints())

    def save(self, name: str, files: Mapping[str, bytes], info: Mapping[str, Any]) -> Checkpoint:
        """Writes a checkpoint, its manifest last, over what half of one may lie there."""
        uri = storage.join(self.uri, "checkpoints", name)
        storage.delete_folder(uri)
        for file, content in files.items():
            storage.write_bytes(storage.join(uri, file), content)
        sums = {f: {"sha256": storage.sha256(c), "size": len(c)} for f, c in files.items()}
        storage.write_json(storage.join(uri, MANIFEST), {"files": sums, "info": info})
        return Checkpoint(uri, name, sums, info)

    def keep_best_and_latest(self) -> None:
        found = self.checkpoints()
        kept = (_best(found), _latest(found))
        for checkpoint in found:
            if checkpoint not in kept:
                # The manifest first: what is half deleted must not look whole.
                storage.delete_file(storage.join(checkpoint.uri, MANIFEST))
                storage.delete_folder(checkpoint.uri)

    def _compare(self, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        for key in wanted:
            if wanted[key] != found.get(key):
                raise UsageError(
                    f"{self.uri}: this run was started with {key} {found.get(key)!r}, now asked "
                    f"for {wanted[key]!r}; use the same to go on with it, or another name"
                )


def _latest(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: c.samples, default=None)


def _best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: (c.jaccard, -c.samples), default=None)


def open_checkpoint(uri: str) -> Checkpoint:
    """A checkpoint by the URI of its folder; raises StorageError where it is not whole."""
    manifest = storage.join(uri, MANIFEST)
    if not storage.exists(manifest):
        raise StorageError(f"{uri}: no whole checkpoint here (no {MANIFEST})")
    found = storage.read_json(manifest)
    if not (isinstance(found, dict) and {"files", "info"} <= found.keys()):
        raise StorageError(f"{manifest}: not a checkpoint's; expected a run or a checkpoint")
    return Checkpoint(uri, uri.rsplit("/", 1)[-1], found["files"], found["info"])


def find_checkpoint(uri: str) -> Checkpoint:
    """A checkpoint by its own URI, or the best one of a run by the run's.

    Raises:
        StorageError: there is neither at `uri`.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    if storage.exists(storage.join(uri, MANIFEST)):
        return open_checkpoint(uri)
    best = Run(uri).best()
    if best is None:
        raise StorageError(f"{uri}: neither a checkpoint nor a run with a whole one")
    return best


def _identity(config: Config) -> dict[str, Any]:
    """What must stay the same for a run to go on: all but how it lies on the cluster."""
    tree = config.model_dump(
        mode="json", exclude={"cluster": True, "search": True, "data": {"records"}}
    )
    flat = {f"{section}.{key}": v for section, branch in tree.items() for key, v in branch.items()}
    return flat | {"cluster.workers": config.cluster.workers}


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    if commit := os.environ.get("SEGAN_GIT_COMMIT"):
        return commit
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

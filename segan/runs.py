"""A run in storage: what it was asked for, its metrics, and its checkpoints.

    <run>/run.json  metrics.jsonl  tensorboard/  checkpoints/epoch_00042/{..., manifest.json}

A checkpoint is of the end of an epoch, after its validation, or of a step within one, step_0000420.
Its manifest, with the checksum and size of each file, is written last and checked on load, so half
a checkpoint is never taken for a whole one. Needs neither torch nor Ray.
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
from typing import TYPE_CHECKING, Any

from segan import storage
from segan.errors import DamagedError, NotFoundError, StorageError, UsageError

if TYPE_CHECKING:
    from segan.config import Config

MANIFEST = "manifest.json"
SEGMENTOR = "segmentor.safetensors"
RESULT = "result.json"  # in the run of a study's trial that is over
REPORT = ("report.json", "report.html")  # of a run, a study or an ensemble
BEST, LATEST = "best", "latest"  # stand for a checkpoint's name wherever one is taken
PACKAGES = ("segan", "torch", "ray", "pyarrow", "numpy", "pillow")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its files' checksums and what it is.

    Attributes:
        name: of its folder, epoch_00042 or step_0000420.
        info: epochs done, samples seen, metrics, what the loop goes on with, and the run's config.
    """

    uri: str
    name: str
    files: Mapping[str, Mapping[str, Any]]
    info: Mapping[str, Any]

    @property
    def samples(self) -> int:
        return int(self.info["samples"])

    @property
    def validated(self) -> bool:
        """Whether it has a Jaccard and a threshold; one from within an epoch has not."""
        return "jaccard" in self.info["metrics"]

    @property
    def jaccard(self) -> float:
        """On validation; raises UsageError where there was none."""
        return float(self._score("jaccard"))

    @property
    def threshold(self) -> float:
        """The best one on validation, in (0, 1); raises UsageError where there was none."""
        return float(self._score("threshold"))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the frames that it was trained on."""
        return int(self.info["frame"]["width"]), int(self.info["frame"]["height"])

    @property
    def config(self) -> Config:
        from segan.config import parse_config  # slow to import, and not needed to list runs

        return parse_config(dict(self.info["config"]))

    def read(self, name: str) -> bytes:
        """A file's content; raises StorageError where it is not the one that was written."""
        content = storage.read_bytes(storage.join(self.uri, name))
        expected = self.files[name]
        if storage.sha256(content) != expected["sha256"]:
            raise DamagedError(
                f"{storage.join(self.uri, name)}: {len(content)} bytes that do not match the "
                f"manifest's checksum ({expected['size']} bytes expected); use another checkpoint"
            )
        return content

    def _score(self, name: str) -> Any:
        if not self.validated:
            raise UsageError(
                f"{self.uri}: saved between two validations, so it has no {name}; use one that was "
                "validated, as the run's best"
            )
        return self.info["metrics"][name]


class Run:
    """One training's place in storage."""

    def __init__(self, uri: str):
        self.uri = storage.normalise(uri)

    def __str__(self) -> str:
        return self.uri

    def begin(self, config: Config, fingerprint: str) -> None:
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
            # A run from before a key was there has its default.
            self._compare(wanted, _identity(type(config)()) | found["identity"])
            return
        storage.write_json(
            name,
            {
                "identity": wanted,
                "config": config.model_dump(mode="json"),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "git_commit": _git_commit(),
                "packages": versions(),
                "python": platform.python_version(),
                "hardware": None,  # it is the workers' to say, not the driver's
            },
        )

    def note_hardware(self, words: str) -> None:
        """Adds the machine to run.json, unless the run began on another."""
        found = self.description()
        if found["hardware"] is None:
            storage.write_json(storage.join(self.uri, "run.json"), found | {"hardware": words})

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
        return self.survey()[0]

    def survey(self) -> tuple[list[Checkpoint], dict[str, str]]:
        """The checkpoints whose manifest is whole, oldest first, and what is wrong with others.

        A folder without a manifest is neither: that save was never done.
        """
        folder = storage.join(self.uri, "checkpoints")
        names = [n for n in storage.iter_names(folder, f"/{MANIFEST}") if n.count("/") == 1]
        whole, damaged = [], {}
        for name in (name.split("/")[0] for name in names):
            try:
                whole.append(open_checkpoint(storage.join(folder, name)))
            except DamagedError as error:
                damaged[name] = str(error)
            except NotFoundError:  # a training has removed it since it was listed
                continue
        return sorted(whole, key=lambda c: c.samples), damaged

    def latest(self) -> Checkpoint | None:
        return latest_of(self.checkpoints())

    def best(self) -> Checkpoint | None:
        """The checkpoint of the best validation Jaccard, the earliest of equals."""
        return best_of(self.checkpoints())

    def checkpoint(self, name: str) -> Checkpoint:
        """A whole checkpoint by its name, or as `best` or `latest`."""
        found = self.checkpoints()
        if not found:
            raise StorageError(f"{self.uri}: neither a checkpoint nor a run with a whole one")
        marks = {BEST: best_of(found), LATEST: latest_of(found)}
        by_name = {c.name: c for c in found} | {mark: c for mark, c in marks.items() if c}
        if name not in by_name:
            raise StorageError(
                f"{self.uri}: no whole checkpoint {name!r}; expected one of {', '.join(by_name)}"
            )
        return by_name[name]

    def save(self, name: str, files: Mapping[str, bytes], info: Mapping[str, Any]) -> Checkpoint:
        """Writes a checkpoint, its manifest last, over what half of one may lie there."""
        uri = storage.join(self.uri, "checkpoints", name)
        storage.delete_folder(uri)
        for file, content in files.items():
            storage.write_bytes(storage.join(uri, file), content)
        sums = {f: {"sha256": storage.sha256(c), "size": len(c)} for f, c in files.items()}
        storage.write_json(storage.join(uri, MANIFEST), make_manifest(sums, info))
        return Checkpoint(uri, name, sums, info)

    def tidy(self, latest: Checkpoint) -> None:
        """Deletes all but the best checkpoint, the latest, and the one before it.

        The last of these stands in for a latest that turns out torn.

        Args:
            latest: the one that was just saved. What is beyond it was passed over when the run
                went on from before, and half ones are of saves that were never done.
        """
        whole = [c for c in self.checkpoints() if c.samples <= latest.samples]
        kept = {c.name for c in (best_of(whole), *whole[-2:]) if c}
        folder = storage.join(self.uri, "checkpoints")
        names = [file.name for file in storage.list_files(folder)]
        for name in sorted({n.split("/")[0] for n in names if "/" in n} - kept):
            uri = storage.join(folder, name)
            # The manifest first: what is half deleted must not look whole.
            if f"{name}/{MANIFEST}" in names:
                storage.delete_file(storage.join(uri, MANIFEST))
            storage.delete_folder(uri)

    def _compare(self, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        for key in wanted:
            if wanted[key] != found.get(key):
                raise UsageError(
                    f"{self.uri}: this run was started with {key} {found.get(key)!r}, now asked "
                    f"for {wanted[key]!r}; use the same to go on with it, or another name"
                )


def latest_of(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: c.samples, default=None)


def best_of(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Of the best validation Jaccard, the earliest of equals."""
    validated = [c for c in checkpoints if c.validated]
    return max(validated, key=lambda c: (c.jaccard, -c.samples), default=None)


def open_checkpoint(uri: str) -> Checkpoint:
    """A checkpoint by the URI of its folder.

    Raises:
        NotFoundError: there is no manifest.
        DamagedError: it is not one that was written for a checkpoint.
    """
    name = storage.join(uri, MANIFEST)
    if not storage.exists(name):
        raise NotFoundError(f"{uri}: no whole checkpoint here (no {MANIFEST})")
    content = storage.read_bytes(name)
    try:
        files, info = _parse_manifest(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DamagedError(
            f"{name}: {len(content)} bytes that are no checkpoint's manifest as it was written; "
            "expected a run or a checkpoint"
        ) from None
    return Checkpoint(uri, storage.basename(uri), files, info)


def make_manifest(
    files: Mapping[str, Mapping[str, Any]], info: Mapping[str, Any]
) -> dict[str, Any]:
    """What manifest.json holds; the files' checksums are proven by the files, info by its own."""
    return {"files": files, "info": info, "info_sha256": _fingerprint(info)}


def _parse_manifest(found: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Files and info; raises one of the errors of a wrong shape where they are not whole."""
    files, info = found["files"], found["info"]
    for entry in files.values():
        str(entry["sha256"]), int(entry["size"])
    int(info["samples"]), info["metrics"].keys()
    if found.get("info_sha256", _fingerprint(info)) != _fingerprint(info):
        raise ValueError("info does not match its checksum")
    return files, info


def _fingerprint(info: Mapping[str, Any]) -> str:
    return storage.sha256(json.dumps(info, sort_keys=True).encode())


def find_checkpoint(uri: str, which: str | None = None) -> Checkpoint:
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
        found = Run(folder.removesuffix("/checkpoints")).checkpoint(last)
        names = {last, found.name}
    elif storage.exists(storage.join(uri, MANIFEST)):
        found = open_checkpoint(uri)
        names = {found.name}
    else:
        return Run(uri).checkpoint(which or BEST)
    if which is not None and which not in names:
        raise UsageError(f"{uri}: a checkpoint, and {which!r} asks for another; give the run's URI")
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
            "training": {"checkpoint_every"},
            "evaluation": {"report"},
        },
    )
    flat = {f"{section}.{key}": v for section, branch in tree.items() for key, v in branch.items()}
    return flat | {"cluster.workers": config.cluster.workers}


def versions() -> dict[str, str]:
    """The versions of the packages that matter to what is computed, of this process."""
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

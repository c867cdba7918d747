"""A checkpoint in storage: its files, and the manifest that says that they are complete.

    epoch_00042/{segmentor.safetensors, critic.safetensors, trainer.pt, manifest.json}

The manifest, with the checksum and size of each file, is written last and checked on load, so half
a checkpoint is never taken for a complete one. Needs neither torch nor Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segan import storage
from segan.errors import CorruptedError, NotFoundError, UsageError

if TYPE_CHECKING:
    from segan.config import Config

MANIFEST_FILE = "manifest.json"
SEGMENTOR_FILE = "segmentor.safetensors"
BEST, LATEST = "best", "latest"  # stand for a checkpoint's name wherever one is taken


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
    def is_validated(self) -> bool:
        """Whether it has a Jaccard and a threshold; one from within an epoch has not."""
        return "jaccard" in self.info["metrics"]

    @property
    def jaccard(self) -> float:
        """On validation; raises UsageError where there was none."""
        return float(self._validation_metric("jaccard"))

    @property
    def threshold(self) -> float:
        """The best one on validation, in (0, 1); raises UsageError where there was none."""
        return float(self._validation_metric("threshold"))

    @property
    def frame_size(self) -> tuple[int, int]:
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
            raise CorruptedError(
                f"{storage.join(self.uri, name)}: {len(content)} bytes that do not match the "
                f"manifest's checksum ({expected['size']} bytes expected); use another checkpoint"
            )
        return content

    def _validation_metric(self, name: str) -> Any:
        if not self.is_validated:
            raise UsageError(
                f"{self.uri}: saved between two validations, so it has no {name}; use one that was "
                "validated, as the run's best"
            )
        return self.info["metrics"][name]


def select_latest(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: c.samples, default=None)


def select_best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Of the best validation Jaccard, the earliest of equals."""
    validated = [c for c in checkpoints if c.is_validated]
    return max(validated, key=lambda c: (c.jaccard, -c.samples), default=None)


def open_checkpoint(uri: str) -> Checkpoint:
    """A checkpoint by the URI of its folder.

    Raises:
        NotFoundError: there is no manifest.
        DamagedError: it is not one that was written for a checkpoint.
    """
    name = storage.join(uri, MANIFEST_FILE)
    if not storage.exists(name):
        raise NotFoundError(f"{uri}: no whole checkpoint here (no {MANIFEST_FILE})")
    content = storage.read_bytes(name)
    try:
        files, info = _parse_manifest(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise CorruptedError(
            f"{name}: {len(content)} bytes that are no checkpoint's manifest as it was written; "
            "expected a run or a checkpoint"
        ) from None
    return Checkpoint(uri, storage.basename(uri), files, info)


def make_manifest(
    files: Mapping[str, Mapping[str, Any]], info: Mapping[str, Any]
) -> dict[str, Any]:
    """What manifest.json holds; the files' checksums are proven by the files, info by its own."""
    return {"files": files, "info": info, "info_sha256": _info_sha256(info)}


def _parse_manifest(found: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Files and info; raises one of the errors of a wrong shape where they are not whole."""
    files, info = found["files"], found["info"]
    for entry in files.values():
        str(entry["sha256"]), int(entry["size"])
    int(info["samples"]), info["metrics"].keys()
    if found.get("info_sha256", _info_sha256(info)) != _info_sha256(info):
        raise ValueError("info does not match its checksum")
    return files, info


def _info_sha256(info: Mapping[str, Any]) -> str:
    return storage.sha256(json.dumps(info, sort_keys=True).encode())


def short_name(checkpoint: str) -> str:
    """<run>/epoch_00042 of a checkpoint's URI."""
    return "/".join(checkpoint.replace("/checkpoints/", "/").split("/")[-2:])

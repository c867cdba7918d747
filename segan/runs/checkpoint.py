"""A checkpoint in storage: its files, and the manifest that proves them complete.

    epoch_00042/{segmentor.safetensors, critic.safetensors, trainer.safetensors, manifest.json}

The manifest holds the checksum and size of each file. It is written last and checked on load, so
an incomplete checkpoint is never used. Imports neither torch nor Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, ConfigDict

from segan import storage
from segan.errors import CorruptedError, NotFoundError, UsageError
from segan.runs.metric_values import check_metrics
from segan.utils.labels import ClassNames, class_names
from segan.utils.models import Count, FrameSide, FrozenModel

if TYPE_CHECKING:
    from segan.config import Config

MANIFEST_FILE = "manifest.json"
SEGMENTOR_FILE = "segmentor.safetensors"
CRITIC_FILE = "critic.safetensors"
BEST, LATEST = "best", "latest"  # aliases, accepted wherever a checkpoint's name is


def _check_frame(frame: dict[str, int]) -> dict[str, int]:
    if frame and frame.keys() != {"width", "height"}:
        raise ValueError("expected width and height")
    return frame


# A frame's width and height in pixels; empty where nothing was trained on.
Frame = Annotated[dict[str, FrameSide], AfterValidator(_check_frame)]


class StoredFile(FrozenModel):
    """A file in a manifest: the SHA-256 of its content, as hex, and its size in bytes."""

    sha256: str
    size: Count


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """The state of the training at a checkpoint, as stored in its manifest.

    Attributes:
        epochs: completed.
        samples: images that all workers together have trained on.
        metrics: of the epoch with its validation; of the step for a checkpoint within an epoch.
        progress: the trainer's counters; None where the checkpoint cannot be resumed from.
        fingerprint: of the records.
        frame: `width` and `height` in pixels of the images that were trained on.
        class_names: of the records; empty where the classes have no names of their own.
        config: the run's configuration, as JSON values by section and key.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    epochs: Count
    samples: Count
    metrics: Annotated[dict[str, Any], AfterValidator(check_metrics)]
    progress: dict[str, Any] | None = None
    fingerprint: str = ""
    frame: Frame = field(default_factory=dict)
    class_names: ClassNames = ()
    config: dict[str, dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The attributes as they are stored: without names of classes if there are none."""
        values = {**vars(self), "class_names": [*self.class_names]}
        if not self.class_names:
            del values["class_names"]
        return values


class _Manifest(FrozenModel):
    """The content of manifest.json."""

    files: dict[str, StoredFile]
    info: CheckpointInfo
    info_sha256: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        name: of its folder, epoch_00042 or step_0000420.
        files: `sha256` and `size` in bytes of each file.
    """

    uri: str
    name: str
    files: Mapping[str, Mapping[str, Any]]
    info: CheckpointInfo

    @property
    def samples(self) -> int:
        return self.info.samples

    @property
    def is_validated(self) -> bool:
        """Whether it has a Jaccard and a threshold; one saved within an epoch has not."""
        return "jaccard" in self.info.metrics

    @property
    def jaccard(self) -> float:
        """On validation; raises UsageError without a validation."""
        return float(self._validation_metric("jaccard"))

    @property
    def threshold(self) -> float:
        """In (0, 1), best on validation; raises UsageError without a validation.

        Of several classes it is the best common one; `thresholds` has one for each.
        """
        return float(self._validation_metric("threshold"))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Each class's threshold; raises UsageError without a validation."""
        common, found = self.threshold, self.info.metrics.get("class_thresholds", {})
        return tuple(float(found.get(label, common)) for label in self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, see `segan.utils.labels.class_names`."""
        count = self.config.network.classes
        try:
            return class_names(self.info.class_names, count)
        except ValueError as error:
            raise CorruptedError(f"{self.uri}: {error}") from None

    @property
    def frame_size(self) -> tuple[int, int]:
        """(width, height) in pixels of the images that were trained on.

        Raises:
            CorruptedError: the manifest has none.
        """
        if not self.info.frame:
            raise CorruptedError(f"{self.uri}: no frame in {MANIFEST_FILE}; use another checkpoint")
        return self.info.frame["width"], self.info.frame["height"]

    @property
    def config(self) -> Config:
        """The run's configuration; raises UsageError where this version cannot read it."""
        from segan.config import parse_config  # slow to import, and not needed to list runs

        try:
            return parse_config(self.info.config)
        except UsageError as error:
            detail = "; ".join(str(error).splitlines())
            raise UsageError(f"{self.uri}: written by another version of segan: {detail}") from None

    def entry(self, name: str) -> Mapping[str, Any]:
        """`sha256` and `size` of a file; raises CorruptedError where the manifest has no such file.

        A checkpoint of which some files were downloaded has only these.
        """
        if name not in self.files:
            raise CorruptedError(
                f"{self.uri}: no {name} in {MANIFEST_FILE}; use a checkpoint with all files"
            )
        return self.files[name]

    def read(self, name: str) -> bytes:
        """A file's content; raises CorruptedError where it does not match its checksum."""
        return b"".join(self.stream(name))

    def stream(self, name: str) -> Iterator[bytes]:
        """Yields a file's content in chunks.

        Raises:
            CorruptedError: after the last chunk, where the file does not match its checksum.
        """
        uri, expected = storage.join(self.uri, name), self.entry(name)
        digest, size = hashlib.sha256(), 0
        for chunk in storage.read_chunks(uri):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
        if digest.hexdigest() != expected["sha256"]:
            raise CorruptedError(
                f"{uri}: {size} bytes that do not match the manifest's checksum "
                f"({expected['size']} bytes expected); use another checkpoint"
            )

    def _validation_metric(self, name: str) -> Any:
        if not self.is_validated:
            raise UsageError(
                f"{self.uri}: saved between two validations, so it has no {name}; use a validated "
                "checkpoint, such as the run's best"
            )
        return self.info.metrics[name]


def select_latest(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda c: (c.samples, c.is_validated), default=None)


def select_best(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the best validation Jaccard; ties go to the earliest."""
    validated = [c for c in checkpoints if c.is_validated]
    return max(validated, key=lambda c: (c.jaccard, -c.samples), default=None)


def open_checkpoint(uri: str) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        NotFoundError: the folder has no manifest.
        CorruptedError: the manifest is not that of a checkpoint, or was changed.
    """
    name = storage.join(uri, MANIFEST_FILE)
    if not storage.exists(name):
        raise NotFoundError(f"{uri}: no complete checkpoint here (no {MANIFEST_FILE})")
    expected = "the manifest of a checkpoint; expected the URI of a run or a checkpoint"
    value = storage.read_json(name, expected)
    manifest = storage.validate_model(name, _Manifest, value, expected)
    # The checksum is that of the values as they are stored, before any became another type.
    if manifest.info_sha256 not in (None, _info_sha256(value["info"])):
        raise CorruptedError(f"{name}: not {expected} (info does not match its checksum)")
    files = {file: entry.model_dump() for file, entry in manifest.files.items()}
    return Checkpoint(uri, storage.basename(uri), files, manifest.info)


def make_manifest(files: Mapping[str, Mapping[str, Any]], info: CheckpointInfo) -> dict[str, Any]:
    """The content of manifest.json: `files` and `info`, each with its checksums."""
    values = info.to_json()
    return {"files": files, "info": values, "info_sha256": _info_sha256(values)}


def check_size(file: str, size: int | None, checkpoint: Checkpoint) -> str:
    """The error message for a file of this size in bytes, None if it is missing; "" if correct."""
    expected = checkpoint.files[file]["size"]
    if size is None:
        return f"{file}: expected {expected} bytes, found no such file"
    return "" if size == expected else f"{file}: expected {expected} bytes, found {size}"


def _info_sha256(info: Mapping[str, Any]) -> str:
    return storage.sha256(json.dumps(info, sort_keys=True).encode())


def short_name(checkpoint: str) -> str:
    """<run>/epoch_00042 of a checkpoint's URI."""
    return "/".join(checkpoint.replace("/checkpoints/", "/").split("/")[-2:])

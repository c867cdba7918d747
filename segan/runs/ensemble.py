"""An ensemble in storage: three segmentors, one threshold, and the scores that chose them.

    <ensembles>/<name>/   ensemble.json  1/segmentor.safetensors  2/...  3/...  card.md
                          report.html  report.json

The weights are copied in, so an ensemble outlives the runs that it came from. ensemble.json holds
their checksums and is written last, so half an ensemble is never taken for a whole one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segan import storage
from segan.errors import StorageError, UsageError
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.runs.run import REPORT_FILES

ENSEMBLE_FILE = "ensemble.json"
CARD_FILE = "card.md"

Rule = Literal["best", "greedy"]


class EnsembleMember(BaseModel):
    """A member: its checkpoint's manifest, with the segmentor alone.

    Attributes:
        uri: of the checkpoint that it was copied from.
        k: steepness of the logistic, which the weights carry.
        files: checksum and size of the segmentor's weights.
        info: of the checkpoint: its configuration, frame, epochs and validation metrics.
    """

    model_config = ConfigDict(frozen=True)

    uri: str
    k: float
    files: dict[str, dict[str, Any]]
    info: dict[str, Any]


class Choice(BaseModel):
    """Three members that a rule chose, by the URIs of their checkpoints, and how they score."""

    model_config = ConfigDict(frozen=True)

    members: tuple[str, ...]
    threshold: float
    jaccard: float


class Ensemble(BaseModel):
    """What ensemble.json says.

    Attributes:
        threshold: of the mean map, best on validation.
        scores: accuracy, dice and jaccard on validation at that threshold.
        jaccard_curve: on validation, at each of `segan.evaluation.sweep.THRESHOLDS`.
        rule: "best" for the three best runs, "greedy" for forward selection.
        choices: what each rule that was tried came to.
        candidates: Jaccard on validation of every run's best checkpoint, by URI.
        records, fingerprint, splits: the data, and how many images each split has.
        trained_on, validated_on: the splits' names.
        frame: width and height in pixels.
    """

    model_config = ConfigDict(frozen=True)

    members: tuple[EnsembleMember, ...] = Field(min_length=1)
    threshold: float = Field(gt=0, lt=1)
    scores: dict[str, float]
    jaccard_curve: tuple[float, ...]
    rule: Rule
    choices: dict[Rule, Choice]
    candidates: dict[str, float]
    records: str
    fingerprint: str
    splits: dict[str, int]
    train_split: str
    validation_split: str
    frame: dict[str, int]
    classes: int

    def checkpoints(self, uri: str) -> list[Checkpoint]:
        """The members' copies inside the ensemble at `uri`."""
        return [
            Checkpoint(storage.join(uri, str(i)), f"member {i}", member.files, member.info)
            for i, member in enumerate(self.members, 1)
        ]


def is_ensemble(uri: str) -> bool:
    return storage.exists(storage.join(uri, ENSEMBLE_FILE))


def read_ensemble(uri: str) -> Ensemble:
    """Raises StorageError where there is no whole ensemble at `uri`."""
    name = storage.join(uri, ENSEMBLE_FILE)
    try:
        return Ensemble.model_validate(storage.read_json(name))
    except ValidationError as error:
        raise StorageError(f"{name}: not an ensemble ({error})") from None


def describe_member(checkpoint: Checkpoint) -> EnsembleMember:
    """What ensemble.json says of a checkpoint; raises StorageError where it fails its checksum."""
    from safetensors.torch import load as load_tensors  # torch, which reading alone does not need

    k = load_tensors(checkpoint.read(SEGMENTOR_FILE))["logistic.k"]
    files = {SEGMENTOR_FILE: dict(checkpoint.files[SEGMENTOR_FILE])}
    return EnsembleMember(uri=checkpoint.uri, k=float(k), files=files, info=dict(checkpoint.info))


def check_output(uri: str, overwrite: bool, count: int) -> None:
    """Makes sure that an ensemble of `count` members can be written at `uri`; changes nothing.

    Raises:
        UsageError: an ensemble is there and may not be replaced, or something else is there.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    ours = {
        ENSEMBLE_FILE,
        CARD_FILE,
        *REPORT_FILES,
        *(f"{i}/{SEGMENTOR_FILE}" for i in range(1, count + 1)),
    }
    names = {file.name for file in storage.list_files(uri)}
    if names - ours:
        raise UsageError(
            f"{uri}: {min(names - ours)} is here, which is no part of an ensemble; use an empty "
            "place"
        )
    if ENSEMBLE_FILE in names and not overwrite:
        raise UsageError(f"{uri}: an ensemble is here already; use --overwrite or another place")


def write_ensemble(
    uri: str,
    ensemble: Ensemble,
    sources: Sequence[Checkpoint],
    card: str,
    overwrite: bool = False,
) -> None:
    """Copies the members' weights, verified, and writes card and ensemble.json, in that order.

    Args:
        sources: the members' checkpoints, in the ensemble's order.
        card: what a person should know before using it, in Markdown.

    Raises:
        UsageError: the place is in use.
        StorageError: a checkpoint fails its checksum, or storage cannot be read or written.
    """
    check_output(uri, overwrite, len(sources))
    # ensemble.json goes first: what is half replaced must not look whole. Reports are of what was.
    for name in (ENSEMBLE_FILE, *REPORT_FILES):
        if storage.exists(storage.join(uri, name)):
            storage.delete_file(storage.join(uri, name))
    for copy, source in zip(ensemble.checkpoints(uri), sources, strict=True):
        storage.write_bytes(storage.join(copy.uri, SEGMENTOR_FILE), source.read(SEGMENTOR_FILE))
    storage.write_bytes(storage.join(uri, CARD_FILE), card.encode())
    storage.write_json(storage.join(uri, ENSEMBLE_FILE), ensemble.model_dump(mode="json"))

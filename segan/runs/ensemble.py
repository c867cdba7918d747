"""An ensemble in storage: three segmentors, their common threshold and their validation scores.

    <ensembles>/<name>/   ensemble.json  1/segmentor.safetensors  2/...  3/...  card.md
                          report.html  report.json

The ensemble holds copies of the weights, so it does not depend on the runs that they came from.
ensemble.json holds their checksums and is written last, so an incomplete ensemble is never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from segan import storage
from segan.errors import UsageError
from segan.runs.checkpoint import (
    SEGMENTOR_FILE,
    Checkpoint,
    CheckpointInfo,
    Frame,
    StoredFile,
)
from segan.runs.run import REPORT_FILES
from segan.storage.lease import LEASE_FILE
from segan.utils.labels import MAX_CLASSES, ClassNames, class_names
from segan.utils.models import FrozenModel

ENSEMBLE_FILE = "ensemble.json"
CARD_FILE = "card.md"

Rule = Literal["best", "greedy"]


class EnsembleMember(FrozenModel):
    """A member: the manifest of its checkpoint, reduced to the segmentor.

    Attributes:
        uri: of the checkpoint that it was copied from.
        k: steepness of the logistic, part of the weights.
        files: checksum and size of the segmentor's weights.
    """

    uri: str
    k: float
    files: dict[str, StoredFile]
    info: CheckpointInfo


class Choice(FrozenModel):
    """The three members that a rule selects, by the URIs of their checkpoints.

    Attributes:
        threshold: of their mean probability, best on validation.
        jaccard: on validation at that threshold.
    """

    members: tuple[str, ...]
    threshold: float
    jaccard: float


class Ensemble(FrozenModel):
    """The content of ensemble.json.

    Attributes:
        threshold: of the mean probability, best on validation.
        scores: accuracy, dice and jaccard on validation at that threshold.
        jaccard_curve: on validation, at each of `segan.inference.thresholds.THRESHOLDS`.
        rule: "best" for the three best runs, "greedy" for forward selection.
        choices: the members that each evaluated rule selects.
        candidates: validation Jaccard of every run's best checkpoint, by URI.
        records, fingerprint: URI and fingerprint of the records.
        splits: number of images in each split.
        frame: `width` and `height` in pixels.
        class_names: of the records; empty where the classes have no names of their own.
        class_thresholds: of several classes, each one's; `threshold` is then the best common one,
            and `scores` are means over the classes, each at its own.
        class_scores: of several classes, the scores of each by its name.
    """

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
    frame: Frame
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    class_names: ClassNames = ()
    class_thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    class_scores: dict[str, dict[str, float]] = Field(default_factory=dict)

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Each class's threshold."""
        return self.class_thresholds or (self.threshold,) * self.classes

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, see `segan.utils.labels.class_names`."""
        return class_names(self.class_names, self.classes)

    @model_validator(mode="after")
    def _check_classes(self) -> Ensemble:
        class_names(self.class_names, self.classes)
        if self.class_thresholds and len(self.class_thresholds) != self.classes:
            raise ValueError(f"{len(self.class_thresholds)} thresholds for {self.classes} classes")
        return self

    def checkpoints(self, uri: str) -> list[Checkpoint]:
        """The members' checkpoints inside the ensemble at `uri`."""
        return [
            Checkpoint(
                storage.join(uri, str(i)),
                f"member {i}",
                {file: entry.model_dump() for file, entry in member.files.items()},
                member.info,
            )
            for i, member in enumerate(self.members, 1)
        ]


def is_ensemble(uri: str) -> bool:
    return storage.exists(storage.join(uri, ENSEMBLE_FILE))


def read_ensemble(uri: str) -> Ensemble:
    """The ensemble at `uri`; raises StorageError where there is no complete one."""
    name = storage.join(uri, ENSEMBLE_FILE)
    return storage.read_model(name, Ensemble, "an ensemble")


def describe_member(checkpoint: Checkpoint) -> EnsembleMember:
    """A checkpoint as a member; raises CorruptedError where it fails its checksum."""
    from safetensors.torch import load as load_tensors  # imports torch

    k = load_tensors(checkpoint.read(SEGMENTOR_FILE))["logistic.k"]
    files = {SEGMENTOR_FILE: StoredFile.model_validate(checkpoint.entry(SEGMENTOR_FILE))}
    return EnsembleMember(uri=checkpoint.uri, k=float(k), files=files, info=checkpoint.info)


def check_output(uri: str, overwrite: bool, count: int) -> None:
    """Checks that an ensemble of `count` members can be written at `uri`; writes nothing.

    Raises:
        UsageError: the place holds other files, or an ensemble and `overwrite` is False.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    ours = {
        ENSEMBLE_FILE,
        CARD_FILE,
        LEASE_FILE,  # this process's own
        *REPORT_FILES,
        *(f"{i}/{SEGMENTOR_FILE}" for i in range(1, count + 1)),
    }
    names = {file.name for file in storage.list_files(uri)}
    if names - ours:
        raise UsageError(
            f"{uri}: contains {min(names - ours)}, which is not part of an ensemble; use an empty "
            "folder or prefix"
        )
    if ENSEMBLE_FILE in names and not overwrite:
        raise UsageError(f"{uri}: an ensemble exists here; use --overwrite or another --out")


def write_ensemble(
    uri: str,
    ensemble: Ensemble,
    sources: Sequence[Checkpoint],
    card: str,
    overwrite: bool = False,
) -> None:
    """Copies the members' weights, verifying them, then writes the card and ensemble.json.

    Args:
        sources: the members' checkpoints, in the ensemble's order.
        card: the model card, in Markdown.

    Raises:
        UsageError: see `check_output`.
        StorageError: a checkpoint fails its checksum, or storage cannot be read or written.
    """
    check_output(uri, overwrite, len(sources))
    # ensemble.json first, so that a partly replaced ensemble does not look complete; reports are
    # those of the old ensemble.
    for name in (ENSEMBLE_FILE, *REPORT_FILES):
        if storage.exists(storage.join(uri, name)):
            storage.delete_file(storage.join(uri, name))
    for copy, source in zip(ensemble.checkpoints(uri), sources, strict=True):
        storage.write_bytes(storage.join(copy.uri, SEGMENTOR_FILE), source.read(SEGMENTOR_FILE))
    storage.write_bytes(storage.join(uri, CARD_FILE), card.encode())
    storage.write_json(storage.join(uri, ENSEMBLE_FILE), ensemble.model_dump(mode="json"))

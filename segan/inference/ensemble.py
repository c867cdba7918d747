"""An ensemble in storage: three segmentors, one threshold, and the scores that chose them.

    <ensembles>/<name>/   ensemble.json  1/segmentor.safetensors  2/...  3/...  card.md

The weights are copied in, so an ensemble outlives the runs that it came from. ensemble.json holds
their checksums and is written last, so half an ensemble is never taken for a whole one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load as load_tensors

from segan import storage
from segan.errors import StorageError, UsageError
from segan.runs import SEGMENTOR, Checkpoint

ENSEMBLE = "ensemble.json"
CARD = "card.md"

Rule = Literal["best", "greedy"]


class MemberEntry(BaseModel):
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

    members: tuple[MemberEntry, ...] = Field(min_length=1)
    threshold: float = Field(gt=0, lt=1)
    scores: dict[str, float]
    jaccard_curve: tuple[float, ...]
    rule: Rule
    choices: dict[Rule, Choice]
    candidates: dict[str, float]
    records: str
    fingerprint: str
    splits: dict[str, int]
    trained_on: str
    validated_on: str
    frame: dict[str, int]
    classes: int

    def checkpoints(self, uri: str) -> list[Checkpoint]:
        """The members' copies inside the ensemble at `uri`."""
        return [
            Checkpoint(storage.join(uri, str(i)), f"member {i}", member.files, member.info)
            for i, member in enumerate(self.members, 1)
        ]


def is_ensemble(uri: str) -> bool:
    return storage.exists(storage.join(uri, ENSEMBLE))


def read_ensemble(uri: str) -> Ensemble:
    """Raises StorageError where there is no whole ensemble at `uri`."""
    name = storage.join(uri, ENSEMBLE)
    try:
        return Ensemble.model_validate(storage.read_json(name))
    except ValidationError as error:
        raise StorageError(f"{name}: not an ensemble ({error})") from None


def member_entry(checkpoint: Checkpoint) -> MemberEntry:
    """What ensemble.json says of a checkpoint; raises StorageError where it fails its checksum."""
    k = load_tensors(checkpoint.read(SEGMENTOR))["logistic.k"]
    files = {SEGMENTOR: dict(checkpoint.files[SEGMENTOR])}
    return MemberEntry(uri=checkpoint.uri, k=float(k), files=files, info=dict(checkpoint.info))


def check_place(uri: str, overwrite: bool, count: int) -> None:
    """Makes sure that an ensemble of `count` members can be written at `uri`; changes nothing.

    Raises:
        UsageError: an ensemble is there and may not be replaced, or something else is there.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    ours = {ENSEMBLE, CARD, *(f"{i}/{SEGMENTOR}" for i in range(1, count + 1))}
    names = {file.name for file in storage.list_files(uri)}
    if names - ours:
        raise UsageError(
            f"{uri}: {min(names - ours)} is here, which is no part of an ensemble; use an empty "
            "place"
        )
    if ENSEMBLE in names and not overwrite:
        raise UsageError(f"{uri}: an ensemble is here already; use --overwrite or another place")


def write_ensemble(
    uri: str, ensemble: Ensemble, sources: Sequence[Checkpoint], overwrite: bool = False
) -> None:
    """Copies the members' weights, verified, and writes card and ensemble.json, in that order.

    Args:
        sources: the members' checkpoints, in the ensemble's order.

    Raises:
        UsageError: the place is in use.
        StorageError: a checkpoint fails its checksum, or storage cannot be read or written.
    """
    check_place(uri, overwrite, len(sources))
    if is_ensemble(uri):
        # It goes first: what is half replaced must not look whole.
        storage.delete_file(storage.join(uri, ENSEMBLE))
    for copy, source in zip(ensemble.checkpoints(uri), sources, strict=True):
        storage.write_bytes(storage.join(copy.uri, SEGMENTOR), source.read(SEGMENTOR))
    storage.write_bytes(storage.join(uri, CARD), card(uri, ensemble).encode())
    storage.write_json(storage.join(uri, ENSEMBLE), ensemble.model_dump(mode="json"))


def card(uri: str, ensemble: Ensemble) -> str:
    """What a person should know of an ensemble before using it, in Markdown."""
    sizes = ", ".join(f"{count} {split}" for split, count in ensemble.splits.items())
    frame = f"{ensemble.frame['width']} x {ensemble.frame['height']}"
    return f"""# {uri.rsplit("/", 1)[-1]}

An ensemble of {len(ensemble.members)} SegAN segmentors that draw a skin lesion's mask in a
dermoscopy image. Their probability maps are averaged, and a pixel above {ensemble.threshold:g} is
lesion. Method: Xue, Xu, Huang, "Adversarial learning with multi-scale loss for skin lesion
segmentation", ISBI 2018.

## Data

Trained on the split `{ensemble.trained_on}` of `{ensemble.records}`, images of {frame} pixels.
Sizes of the splits: {sizes}. Fingerprint: `{ensemble.fingerprint}`.

## Scores on `{ensemble.validated_on}`

Means over images, at {frame} pixels. Members, thresholds and checkpoints were chosen on these
same images, so the scores flatter; no other split was looked at.

{_score_table(ensemble)}

{_MEANING[ensemble.rule]} There were {len(ensemble.candidates)} candidates.

## Use

```sh
segan predict {uri} ./photographs ./masks
segan evaluate {uri} ARCHIVE --split test
```

```python
from segan.inference.predictor import Predictor

mask = Predictor.load("{uri}")(image).mask      # image: a PIL image of any size
```

## Limits

- Every image is seen at {frame} pixels: finer detail of an outline is lost.
- It knows images like those it was trained on: another camera, skin tone, body site or kind of
  lesion may score lower. It says where a lesion is, never of what kind, and not how sure that is.
- This is research software and no medical device. Do not use it for diagnosis or treatment.
"""


_MEANING = {
    "best": "The members are the best checkpoints of the three runs with the best Jaccard.",
    "greedy": "The members are the best run, then twice the one whose company scored best.",
}


def _score_table(ensemble: Ensemble) -> str:
    rows = [
        (f"member {i}", member.info["metrics"], f"{member.k:g}", member.uri)
        for i, member in enumerate(ensemble.members, 1)
    ]
    rows.append(("ensemble", ensemble.scores | {"threshold": ensemble.threshold}, "", ""))
    head = "| | accuracy | Dice | Jaccard | threshold | k | from |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *(_score_line(*row) for row in rows)])


def _score_line(name: str, scores: Mapping[str, float], k: str, source: str) -> str:
    figures = [f"{scores[key]:.4f}" for key in ("accuracy", "dice", "jaccard")]
    return f"| {' | '.join([name, *figures, format(scores['threshold'], 'g'), k, source])} |"

"""predictions.csv: a row for each image of a place, by which a prediction that stopped goes on.

    <out>/predictions.json    the weights, threshold and flips that everything here is of
          predictions.csv     a row for each image that was done or rejected

The table is written whole now and then and at the end, so it is never half a one. What was done
since it was last written is done again.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from segan import storage
from segan.errors import StorageError, UsageError
from segan.inference.masks import WriteMasks, image_id
from segan.inference.predictor import Predictor

TABLE, MODEL = "predictions.csv", "predictions.json"
EVERY = 30.0  # seconds between two writings of the table
SHARE = 0.05  # of the time that writing it may take at most


@dataclass(frozen=True, slots=True)
class Predicted:
    """An image's row.

    Attributes:
        image: its URI.
        mask: name of the mask's file, `bytes` its size; both nothing of a rejected image.
        width, height: of image and mask, pixels.
        area, share, parts, confidence, disagreement, flags: `segan.inference.figures.Figures`.
        reject: why the image could not be read, or nothing.
    """

    id: str
    image: str
    mask: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    area: int = 0
    share: float = 0.0
    parts: int = 0
    confidence: float = 0.0
    disagreement: float | None = None
    flags: str = ""
    reject: str = ""


_ROWS = TypeAdapter(list[Predicted])


class Predictions:
    """The rows of a place, as they come.

    Raises:
        UsageError: what is there is another model's, or of another threshold or flips.
        StorageError: it cannot be read or written.
    """

    def __init__(self, work: WriteMasks, predictor: Predictor, overwrite: bool = False):
        self._work, self._model = work, _describe(predictor)
        self._rows: dict[str, Predicted] = {}
        self._saved, self._pause = time.monotonic(), EVERY
        place = storage.join(work.out, MODEL)
        there = storage.read_json(place) if storage.exists(place) else None
        if there is not None and not overwrite:
            _compare(work.out, self._model, there)
            self._rows = {row.id: row for row in read_predictions(work.out)}
            return
        if storage.exists(storage.join(work.out, TABLE)):
            storage.delete_file(storage.join(work.out, TABLE))  # first: its rows are another's
        storage.write_json(place, self._model)

    def missing(self, images: Sequence[str]) -> list[str]:
        """Those of which not everything that is asked for is there and whole; rejects are not."""
        sizes = {file.name: file.size for file in storage.list_files(self._work.out)}

        def is_there(image: str) -> bool:
            row = self._rows.get(image_id(image))
            if row is None or row.image != image or row.reject or sizes.get(row.mask) != row.bytes:
                return False
            return all(sizes.get(name) for name in self._work.files(image))

        return [image for image in images if not is_there(image)]

    def add(self, row: dict[str, Any]) -> None:
        one = Predicted(**row)
        self._rows[one.id] = one
        if time.monotonic() - self._saved > self._pause:
            self.save()

    def of(self, images: Sequence[str]) -> list[Predicted]:
        """The rows of these images that are done or rejected, by id."""
        ids = sorted(image_id(image) for image in images)
        return [self._rows[one] for one in ids if one in self._rows]

    def save(self) -> None:
        """Writes the table, by id."""
        began = time.monotonic()
        sink = io.StringIO()
        table = csv.DictWriter(sink, [field.name for field in fields(Predicted)])
        table.writeheader()
        table.writerows(asdict(self._rows[one]) for one in sorted(self._rows))
        storage.write_bytes(storage.join(self._work.out, TABLE), sink.getvalue().encode())
        self._saved = time.monotonic()
        self._pause = max(EVERY, (self._saved - began) / SHARE)

    def __enter__(self) -> Predictions:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()  # of what was stopped or failed, too, so that it need not be done again


def read_predictions(out: str) -> list[Predicted]:
    """The rows of a place; none where there is no table.

    Raises:
        StorageError: it is no such table.
    """
    name = storage.join(out, TABLE)
    if not storage.exists(name):
        return []
    lines = csv.DictReader(io.StringIO(storage.read_bytes(name).decode(errors="replace")))
    try:
        return _ROWS.validate_python([{k: v for k, v in line.items() if v} for line in lines])
    except ValidationError as error:
        first = error.errors()[0]
        raise StorageError(f"{name}: not a table of predictions ({first['msg']})") from None


def _describe(predictor: Predictor) -> dict[str, Any]:
    return {
        "model": predictor.name,
        "weights": [member.sha256 for member in predictor.members],
        "threshold": predictor.threshold,
        "flips": [member.config.evaluation.flips for member in predictor.members],
    }


def _compare(out: str, wanted: dict[str, Any], found: Any) -> None:
    if not isinstance(found, dict):
        raise StorageError(f"{storage.join(out, MODEL)}: expected what `segan predict` wrote")
    for key in ("weights", "threshold", "flips"):  # a model may move
        if wanted[key] != found.get(key):
            raise UsageError(
                f"{out}: masks of {found.get('model')} with {key} {found.get(key)} are here, and "
                f"{wanted[key]} of {wanted['model']} are asked for; use --overwrite or another "
                "place"
            )

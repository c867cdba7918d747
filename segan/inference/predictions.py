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
from segan.inference.masks import MaskWriter, image_id
from segan.inference.predictor import Predictor

TABLE_FILE, MODEL_FILE = "predictions.csv", "predictions.json"
SAVE_INTERVAL_S = 30.0  # seconds between two writings of the table
MAX_SAVE_FRACTION = 0.05  # of the time that writing it may take at most


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """An image's row.

    Attributes:
        image: its URI.
        mask: name of the mask's file, `bytes` its size; both nothing of a rejected image.
        width, height: of image and mask, pixels.
        area, share, parts, confidence, disagreement, flags:
        `segan.inference.region_stats.RegionStats`.
        reject: why the image could not be read, or nothing.
    """

    id: str
    image: str
    mask: str = ""
    bytes: int = 0
    width: int = 0
    height: int = 0
    area: int = 0
    area_fraction: float = 0.0
    num_components: int = 0
    confidence: float = 0.0
    disagreement: float | None = None
    flags: str = ""
    error: str = ""


_ROWS = TypeAdapter(list[PredictionRow])


class PredictionTable:
    """The rows of a place, as they come.

    Raises:
        UsageError: what is there is another model's, or of another threshold or flips.
        StorageError: it cannot be read or written.
    """

    def __init__(self, task: MaskWriter, predictor: Predictor, overwrite: bool = False):
        self._task, self._model = task, _describe(predictor)
        self._rows: dict[str, PredictionRow] = {}
        self._last_save, self._save_interval = time.monotonic(), SAVE_INTERVAL_S
        place = storage.join(task.out, MODEL_FILE)
        there = storage.read_json(place) if storage.exists(place) else None
        if there is not None and not overwrite:
            _compare(task.out, self._model, there)
            self._rows = {row.id: row for row in read_predictions(task.out)}
            return
        if storage.exists(storage.join(task.out, TABLE_FILE)):
            storage.delete_file(storage.join(task.out, TABLE_FILE))  # first: its rows are another's
        storage.write_json(place, self._model)

    def find_missing(self, images: Sequence[str]) -> list[str]:
        """Those of which not everything that is asked for is there and whole; rejects are not."""
        sizes = {file.name: file.size for file in storage.list_files(self._task.out)}

        def is_there(image: str) -> bool:
            row = self._rows.get(image_id(image))
            if row is None or row.image != image or row.error or sizes.get(row.mask) != row.bytes:
                return False
            return all(sizes.get(name) for name in self._task.file_names(image))

        return [image for image in images if not is_there(image)]

    def add(self, row: dict[str, Any]) -> None:
        one = PredictionRow(**row)
        self._rows[one.id] = one
        if time.monotonic() - self._last_save > self._save_interval:
            self.save()

    def get_rows(self, images: Sequence[str]) -> list[PredictionRow]:
        """The rows of these images that are done or rejected, by id."""
        ids = sorted(image_id(image) for image in images)
        return [self._rows[one] for one in ids if one in self._rows]

    def save(self) -> None:
        """Writes the table, by id."""
        began = time.monotonic()
        sink = io.StringIO()
        table = csv.DictWriter(sink, [field.name for field in fields(PredictionRow)])
        table.writeheader()
        table.writerows(asdict(self._rows[one]) for one in sorted(self._rows))
        storage.write_bytes(storage.join(self._task.out, TABLE_FILE), sink.getvalue().encode())
        self._last_save = time.monotonic()
        self._save_interval = max(SAVE_INTERVAL_S, (self._last_save - began) / MAX_SAVE_FRACTION)

    def __enter__(self) -> PredictionTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()  # of what was stopped or failed, too, so that it need not be done again


def read_predictions(out: str) -> list[PredictionRow]:
    """The rows of a place; none where there is no table.

    Raises:
        StorageError: it is no such table.
    """
    name = storage.join(out, TABLE_FILE)
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
        "tta": [member.config.evaluation.tta for member in predictor.members],
    }


def _compare(out: str, wanted: dict[str, Any], found: Any) -> None:
    if not isinstance(found, dict):
        raise StorageError(f"{storage.join(out, MODEL_FILE)}: expected what `segan predict` wrote")
    for key in ("weights", "threshold", "tta"):  # a model may move
        if wanted[key] != found.get(key):
            raise UsageError(
                f"{out}: masks of {found.get('model')} with {key} {found.get(key)} are here, and "
                f"{wanted[key]} of {wanted['model']} are asked for; use --overwrite or another "
                "place"
            )

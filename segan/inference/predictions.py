"""The table of predictions of an output folder, which makes `segan predict` resumable.

    <out>/predictions.json    the model of all masks: weights, threshold and test-time augmentation
          predictions.csv     a row for each processed or rejected image; of a model with several
                              classes, a row for each class of it

The table is replaced as a whole, every SAVE_INTERVAL_S seconds and at the end. After a crash,
images processed since the last save are processed again.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from segan import storage
from segan.errors import CorruptedError, StorageError
from segan.inference.masks import MaskWriter, image_id
from segan.inference.predictor import Predictor
from segan.runs.identity import require_same
from segan.utils.text import escape_controls, from_cell, to_cell

TABLE_FILE, MODEL_FILE = "predictions.csv", "predictions.json"
SAVE_INTERVAL_S = 30.0  # between two saves of the table
MAX_SAVE_FRACTION = 0.05  # of the run time that saves may take


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """The row of an image.

    Attributes:
        image: its URI.
        mask, bytes: the mask's file name and size; empty and 0 for a rejected image.
        width, height: of image and mask, pixels.
        area, area_fraction, num_components, confidence, disagreement, flags: see
            `segan.inference.region_stats.RegionStats`.
        error: why the image could not be read; "" if it could.
        class_name: of a model with several classes; else "", and the table has no such column.
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
    class_name: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The values by column; without `class_name` if it is empty."""
        return {k: v for k, v in asdict(self).items() if k != "class_name" or v}


class PredictionTable:
    """The rows of an output folder, saved periodically; a context manager that saves at its end.

    Args:
        overwrite: drop the rows of an earlier run instead of resuming it.

    Raises:
        UsageError: the folder holds masks of other weights, another threshold or other flips.
        StorageError: it cannot be read or written.
    """

    def __init__(self, task: MaskWriter, predictor: Predictor, overwrite: bool = False):
        self.task, self._model = task, _describe(predictor, task)
        self._rows: dict[str, list[PredictionRow]] = {}  # of each image, by its id
        self._last_save, self._save_interval = time.monotonic(), SAVE_INTERVAL_S
        model_uri = storage.join(task.out, MODEL_FILE)
        if storage.exists(model_uri) and not overwrite:
            _require_same_model(task.out, self._model, storage.read_json(model_uri))
            for row in read_predictions(task.out):
                self._rows.setdefault(row.id, []).append(row)
            return
        if storage.exists(storage.join(task.out, TABLE_FILE)):
            storage.delete_file(
                storage.join(task.out, TABLE_FILE)
            )  # first, as its rows belong to another model
        storage.write_json(model_uri, self._model)

    def find_missing(self, images: Sequence[str]) -> list[str]:
        """The images whose mask or maps are missing or incomplete, and those with an error."""
        sizes = {file.name: file.size for file in storage.list_files(self.task.out)}

        def is_complete(image: str) -> bool:
            rows = self._rows.get(image_id(image), [])
            if [row.mask for row in rows] != self.task.mask_files(image):
                return False
            if any(row.image != image or sizes.get(row.mask) != row.bytes for row in rows):
                return False
            return all(sizes.get(name) for name in self.task.file_names(image))

        return [image for image in images if not is_complete(image)]

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row of `MaskWriter`."""
        self._rows[row["id"]] = [PredictionRow(**one) for one in row.get("classes", [row])]
        if time.monotonic() - self._last_save > self._save_interval:
            self.save()

    def get_rows(self, images: Sequence[str]) -> list[PredictionRow]:
        """The rows of these images, sorted by id; images not processed yet have none."""
        ids = sorted(image_id(image) for image in images)
        return [row for id_ in ids for row in self._rows.get(id_, [])]

    def save(self) -> None:
        """Writes the table, sorted by id."""
        began = time.monotonic()
        self.task.fence()
        sink = io.StringIO()
        columns = [field.name for field in fields(PredictionRow)]
        if len(self.task.classes) == 1:
            columns.remove("class_name")
        table = csv.DictWriter(sink, columns)
        table.writeheader()
        table.writerows(_to_cells(row) for id_ in sorted(self._rows) for row in self._rows[id_])
        storage.write_bytes(storage.join(self.task.out, TABLE_FILE), sink.getvalue().encode())
        self._last_save = time.monotonic()
        self._save_interval = max(SAVE_INTERVAL_S, (self._last_save - began) / MAX_SAVE_FRACTION)

    def __enter__(self) -> PredictionTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()  # also after an error, so that finished images are not repeated


def read_predictions(out: str) -> list[PredictionRow]:
    """The rows of an output folder; empty if it has no table.

    Raises:
        StorageError: the table is invalid.
    """
    name = storage.join(out, TABLE_FILE)
    if not storage.exists(name):
        return []
    lines = csv.DictReader(io.StringIO(storage.read_bytes(name).decode(errors="replace")))
    try:
        rows = [{str(k): _from_cell(v) for k, v in line.items() if v} for line in lines]
    except csv.Error as error:
        raise CorruptedError(f"{name}: not a table of predictions ({error})") from None
    return storage.validate_model(name, list[PredictionRow], rows, "a table of predictions")


def _to_cells(row: PredictionRow) -> dict[str, Any]:
    """The row with text that no spreadsheet computes and no terminal obeys."""
    return {
        key: to_cell(escape_controls(value)) if isinstance(value, str) else value
        for key, value in row.to_dict().items()
    }


def _from_cell(value: Any) -> Any:
    return from_cell(value) if isinstance(value, str) else value


def _describe(predictor: Predictor, task: MaskWriter) -> dict[str, Any]:
    """The content of MODEL_FILE."""
    one = len(predictor.class_names) == 1
    thresholds: dict[str, Any] = (
        {"threshold": predictor.threshold}
        if one
        else {
            "thresholds": dict(zip(predictor.class_names, predictor.thresholds, strict=True)),
            "label_image": task.label_image,
        }
    )
    return {
        "model": predictor.name,
        "weights": [member.sha256 for member in predictor.members],
        **thresholds,
        "tta": [member.config.evaluation.tta for member in predictor.members],
    }


def _require_same_model(out: str, expected: dict[str, Any], found: Any) -> None:
    if not isinstance(found, dict):
        raise StorageError(
            f"{storage.join(out, MODEL_FILE)}: expected a file written by `segan predict`"
        )
    keys = expected.keys() - {"model"}  # a model may move
    require_same(
        {key: value for key, value in expected.items() if key in keys},
        {key: found.get(key) for key in keys},
        f"{out}: contains masks of {found.get('model')}",
        "use --overwrite or another OUT",
    )

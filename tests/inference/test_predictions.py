"""predictions.csv: saved, read and resumed."""

from __future__ import annotations

import csv
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from segan import storage
from segan.errors import StorageError, UsageError
from segan.inference import predictions
from segan.inference.masks import MaskWriter, find_images
from segan.inference.pipeline import run_image_task
from segan.inference.predictions import PredictionRow, PredictionTable, read_predictions
from segan.inference.predictor import Predictor
from tests.inference.models import untrained_predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return untrained_predictor((0, 1, 2))


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    for i, name in enumerate("abc"):
        Image.new("RGB", (80 + i, 70), (40 * i, 90, 200)).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"none")
    return [f"{tmp_path}/{name}.png" for name in "abcd"]


def predict_missing(work: MaskWriter, predictor: Predictor, images: list[str]) -> list[str]:
    """Segments the missing images; returns their stems."""
    with PredictionTable(work, predictor) as kept:
        missing = kept.find_missing(images)
        for row in run_image_task(predictor, missing, work):
            kept.add(row)
    return [Path(image).stem for image in missing]


def test_rows_survive_a_round_trip(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    work = MaskWriter(f"{tmp_path}/out")
    assert predict_missing(work, predictor, images) == ["a", "b", "c", "d"]
    rows = read_predictions(work.out)
    assert rows == [PredictionRow(**row) for row in run_image_task(predictor, images, work)]
    assert "expected an image" in rows[3].error
    with open(f"{work.out}/predictions.csv") as file:
        header = next(csv.reader(file))
    columns = [field.name for field in dataclasses.fields(PredictionRow)]
    assert header == [name for name in columns if name != "class_name"]


def test_names_that_a_spreadsheet_would_compute_are_text(
    predictor: Predictor, tmp_path: Path
) -> None:
    for name in ("=cmd|' C calc'!A0", "-1+1", "@a", "'quoted"):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{name}.png")
    images = find_images(str(tmp_path))
    work = MaskWriter(f"{tmp_path}/out")
    assert len(predict_missing(work, predictor, images)) == 4
    with open(f"{work.out}/predictions.csv") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids == ["''quoted", "'-1+1", "'=cmd|' C calc'!A0", "'@a"]
    assert [row.id for row in read_predictions(work.out)] == [
        "'quoted", "-1+1", "=cmd|' C calc'!A0", "@a",
    ]  # fmt: skip
    assert predict_missing(work, predictor, images) == []


def test_only_rejects_and_incomplete_images_are_repeated(
    predictor: Predictor, images: list[str], tmp_path: Path
) -> None:
    work = MaskWriter(f"{tmp_path}/out")
    predict_missing(work, predictor, images)
    assert predict_missing(work, predictor, images) == ["d"]
    Path(f"{work.out}/b_segmentation.png").write_bytes(b"half")
    assert predict_missing(work, predictor, images) == ["b", "d"]
    with_maps = MaskWriter(work.out, ("probability",))
    assert predict_missing(with_maps, predictor, images) == ["a", "b", "c", "d"]
    assert predict_missing(with_maps, predictor, images) == ["d"]
    # An image of the same name in another folder is another image.
    Image.open(images[0]).save(tmp_path / "other.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other.png").rename(tmp_path / "elsewhere" / "a.png")
    assert predict_missing(work, predictor, [f"{tmp_path}/elsewhere/a.png"]) == ["a"]


def test_rows_before_a_failure_are_saved(
    predictor: Predictor, images: list[str], tmp_path: Path
) -> None:
    work = MaskWriter(f"{tmp_path}/out")

    def stopped_after_two() -> None:
        with PredictionTable(work, predictor) as kept:
            for row in run_image_task(predictor, images[:2], work):
                kept.add(row)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_after_two()
    assert predict_missing(work, predictor, images) == ["c", "d"]
    assert [row.id for row in read_predictions(work.out)] == ["a", "b", "c", "d"]


def test_the_table_is_saved_periodically(
    predictor: Predictor, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = MaskWriter(f"{tmp_path}/out")
    rows = run_image_task(predictor, images, work)
    kept = PredictionTable(work, predictor)
    kept.add(next(rows))
    assert read_predictions(work.out) == []
    now = time.monotonic()
    monkeypatch.setattr(
        predictions.time, "monotonic", lambda: now + predictions.SAVE_INTERVAL_S + 1
    )
    kept.add(next(rows))
    assert [row.id for row in read_predictions(work.out)] == ["a", "b"]


@pytest.mark.parametrize(
    "change", [{"threshold": 0.7}, {"members": "other"}, {"members": "flipped"}], ids=str
)
def test_masks_of_another_model_are_refused(
    predictor: Predictor, images: list[str], tmp_path: Path, change: dict[str, Any]
) -> None:
    work = MaskWriter(f"{tmp_path}/out")
    predict_missing(work, predictor, images)
    member = predictor.members[0]
    others = {
        "other": dataclasses.replace(member, sha256="another"),
        "flipped": dataclasses.replace(
            member, config=untrained_predictor(evaluation={"tta": True}).members[0].config
        ),
    }
    members = [others.get(change.get("members", ""), member), *predictor.members[1:]]
    threshold = change.get("threshold", predictor.threshold)
    other = Predictor(members, predictor.frame_size, threshold, "other")
    with pytest.raises(UsageError, match=r"out: contains masks of untrained: .*--overwrite"):
        PredictionTable(work, other)
    moved = Predictor(predictor.members, predictor.frame_size, predictor.threshold, "moved")
    assert PredictionTable(work, moved).find_missing(images) == images[3:]
    assert PredictionTable(work, other, overwrite=True).find_missing(images) == images
    assert not storage.exists(f"{work.out}/predictions.csv")


@pytest.mark.parametrize("content", [b"null", b"[]", b"{torn"])
def test_masks_of_an_unknown_model_are_kept_until_they_are_overwritten(
    predictor: Predictor, images: list[str], tmp_path: Path, content: bytes
) -> None:
    work = MaskWriter(f"{tmp_path}/out")
    predict_missing(work, predictor, images)
    rows = read_predictions(work.out)
    storage.write_bytes(f"{work.out}/{predictions.MODEL_FILE}", content)
    with pytest.raises(StorageError, match=predictions.MODEL_FILE):
        PredictionTable(work, predictor)
    assert read_predictions(work.out) == rows
    PredictionTable(work, predictor, overwrite=True)
    assert predict_missing(work, predictor, images) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("content", ["id,image\na\n", "nonsense", "id,image,area\na,b,many\n"])
def test_an_invalid_table_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "predictions.csv").write_text(content)
    if content == "nonsense":
        assert read_predictions(str(tmp_path)) == []
        return
    with pytest.raises(StorageError, match=r"predictions\.csv: not a table of predictions"):
        read_predictions(str(tmp_path))

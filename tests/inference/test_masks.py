"""Masks as files, under the challenge's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segan.errors import SeganError, StorageError
from segan.inference.masks import find_images, mask_name, write_mask
from segan.inference.predictor import Predictor
from tests.inference.models import untrained


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return untrained()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("ISIC_0000000.jpg", "ISIC_0000000_segmentation.png"),
        ("s3://bucket/2017/ISIC_0012345.JPEG", "ISIC_0012345_segmentation.png"),
        ("/data/a.b.png", "a.b_segmentation.png"),
    ],
)
def test_a_masks_name(image: str, name: str) -> None:
    assert mask_name(image) == name


def test_images_are_found_and_masks_are_not(tmp_path: Path) -> None:
    images = ["b/ISIC_0000002.PNG", "ISIC_0000001.jpg", "ISIC_0000003.tiff"]
    others = ["ISIC_0000001_segmentation.png", "ISIC_0000001_superpixels.png", "notes.txt"]
    touch(tmp_path, *images, *others)
    assert find_images(str(tmp_path)) == sorted(f"{tmp_path}/{name}" for name in images)


def test_one_image_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_images("a.jpg") == [f"{tmp_path}/a.jpg"]


@pytest.mark.parametrize("place", [".", "missing"])
def test_no_image_is_an_error(tmp_path: Path, place: str) -> None:
    touch(tmp_path, "notes.txt")
    with pytest.raises(SeganError, match=r"no images found; expected files such as ISIC_"):
        find_images(f"{tmp_path}/{place}")


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("one/a.jpg", "two/a.jpg")])
def test_images_that_would_share_a_mask_are_an_error(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(SeganError, match=r"a_segmentation\.png"):
        find_images(str(tmp_path))


def test_a_mask_is_written_at_its_images_size(predictor: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (77, 130, 3), dtype=np.uint8))
    image.save(tmp_path / "ISIC_0000007.png")
    row = write_mask(predictor, f"{tmp_path}/ISIC_0000007.png", f"{tmp_path}/out")
    expected = predictor(image).mask
    assert 0 < expected.mean() < 1
    assert row == {
        "id": "ISIC_0000007",
        "mask": f"{tmp_path}/out/ISIC_0000007_segmentation.png",
        "lesion": pytest.approx(expected.mean()),
        "reject": "",
    }
    written = Image.open(row["mask"])
    assert (written.format, written.mode, written.size) == ("PNG", "L", (130, 77))
    np.testing.assert_array_equal(np.asarray(written), np.where(expected, 255, 0))


def test_what_is_no_image_is_rejected_and_nothing_written(
    predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    row = write_mask(predictor, f"{tmp_path}/broken.jpg", f"{tmp_path}/out")
    assert "broken.jpg: expected an image" in row["reject"]
    assert (row["id"], row["mask"], row["lesion"]) == ("broken", "", 0.0)
    assert not (tmp_path / "out").exists()


def test_a_missing_image_is_an_error(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.jpg: not found"):
        write_mask(predictor, f"{tmp_path}/gone.jpg", f"{tmp_path}/out")

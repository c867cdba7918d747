"""Masks and maps as files, under the challenge's names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segan.errors import SeganError, StorageError
from segan.inference.masks import MaskWriter, find_images, mask_name
from segan.inference.pipeline import Row, run_image_task
from segan.inference.predictor import Predictor, resize_maps
from segan.inference.region_stats import region_stats
from tests.inference.models import untrained_predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return untrained_predictor()


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
    kinds = ("segmentation", "superpixels", "probability", "uncertainty")
    others = ["notes.txt", *(f"ISIC_0000001_{kind}.png" for kind in kinds)]
    touch(tmp_path, *images, *others)
    assert find_images(str(tmp_path)) == sorted(f"{tmp_path}/{name}" for name in images)


def test_masks_of_every_layout_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    images = ["2016/ISIC_1.jpg", "UP.JPG", "IMD002/IMD002_Dermoscopic_Image/IMD002.bmp"]
    others = [
        "2016/ISIC_1_Segmentation.png",
        "UP_SEGMENTATION.PNG",
        "UP_Superpixels.png",
        "UP_Probability.png",
        "ISIC_2_attribute_globules.png",
        "IMD002/IMD002_lesion/IMD002_lesion.bmp",
        "IMD002/IMD002_roi/IMD002_R1_Label1.bmp",
        "._UP.JPG",
        "__MACOSX/._UP.JPG",
        ".thumbnails/UP.JPG",
        "2016/.ipynb_checkpoints/ISIC_1.jpg",
    ]
    touch(tmp_path, *images, *others)
    assert find_images(str(tmp_path)) == sorted(f"{tmp_path}/{name}" for name in images)


def test_a_photograph_may_be_called_lesion(tmp_path: Path) -> None:
    touch(tmp_path, "my_lesion.jpg", "roi/a.png")
    assert len(find_images(str(tmp_path))) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{'l' * 230}.jpg", "its mask's name has 247 bytes, expected at most 237; rename it"),
        ("a\x1b[2J.jpg", "control characters"),
        ("a\\b.jpg", "a backslash"),
    ],
)
def test_an_image_that_no_mask_can_be_named_after_is_rejected_alone(
    tmp_path: Path, name: str, said: str
) -> None:
    touch(tmp_path, "good.jpg", name)
    rejects: list[str] = []
    assert find_images(str(tmp_path), rejects.append) == [f"{tmp_path}/good.jpg"]
    (reject,) = rejects
    assert said in reject


def test_the_longest_name_gets_its_mask(tmp_path: Path, predictor: Predictor) -> None:
    path = tmp_path / f"{'l' * (237 - len('_segmentation.png'))}.png"
    Image.new("RGB", (40, 30)).save(path)
    task = MaskWriter(str(tmp_path / "out"))
    (row,) = run_image_task(predictor, find_images(str(path)), task)
    assert (tmp_path / "out" / row["mask"]).stat().st_size == row["bytes"]


def test_a_single_image_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def write_masks(
    predictor: Predictor, out: Path, *images: Path, maps: tuple[str, ...] = ()
) -> list[Row]:
    return list(run_image_task(predictor, map(str, images), MaskWriter(str(out), maps)))


def save_noise(path: Path, width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(path)
    return image


def test_a_mask_is_written_at_its_images_size(predictor: Predictor, tmp_path: Path) -> None:
    image = save_noise(tmp_path / "ISIC_0000007.png", 130, 77)
    (row,) = write_masks(predictor, tmp_path / "out", tmp_path / "ISIC_0000007.png")
    expected = predictor(image)
    assert 0 < expected.mask.mean() < 1
    file = tmp_path / "out" / "ISIC_0000007_segmentation.png"
    assert row == {
        "id": "ISIC_0000007",
        "image": f"{tmp_path}/ISIC_0000007.png",
        "mask": file.name,
        "bytes": file.stat().st_size,
        "width": 130,
        "height": 77,
        **dataclasses.asdict(region_stats(expected)),
    }
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    written = Image.open(file)
    assert (written.format, written.mode, written.size) == ("PNG", "L", (130, 77))
    np.testing.assert_array_equal(np.asarray(written), np.where(expected.mask, 255, 0))


def test_maps_have_16_bits_at_the_images_size(tmp_path: Path) -> None:
    model = untrained_predictor(seeds=(0, 1, 2))
    image = save_noise(tmp_path / "a.png", 130, 77)
    out = tmp_path / "out"
    (row,) = write_masks(model, out, tmp_path / "a.png", maps=("probability", "uncertainty"))
    *members, whole = model.predict_members(image)
    maps = model.predict_proba(model.preprocess(image)[None])[0]
    deviation = resize_maps(torch.from_numpy(maps.numpy().std(0)), image.size)[0]
    for kind, expected in (("probability", whole.probability), ("uncertainty", deviation)):
        file = Image.open(out / kind / f"a_{kind}.png")
        assert (file.mode, file.size) == ("I;16", (130, 77))
        assert expected.max() - expected.min() > 0.1
        np.testing.assert_allclose(np.asarray(file) / 65535, expected, atol=0.5 / 65535 + 1e-7)
    masks = np.stack([member.mask for member in members])
    assert row["disagreement"] == pytest.approx(
        1 - masks.all(0).sum() / masks.any(0).sum(), abs=1e-6
    )


def test_invalid_images_are_rejected_and_the_others_are_written(
    predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    save_noise(tmp_path / "whole.png", 90, 68)
    names = ("broken.jpg", "whole.png", "gone.jpg")
    rows = write_masks(predictor, tmp_path / "out", *(tmp_path / name for name in names))
    assert [row["id"] for row in rows] == ["broken", "whole", "gone"]
    assert "broken.jpg: expected an image" in rows[0]["error"]
    assert rows[2]["error"] == "gone.jpg: not found"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["whole_segmentation.png"]


def test_a_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.jpg: not found"):
        find_images(f"{tmp_path}/gone.jpg")

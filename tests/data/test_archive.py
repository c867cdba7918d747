"""Archives: what a listing pairs, and what of a pair can be used."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segan import storage
from segan.data import archive as archives
from segan.data.archive import Pair, RejectedError, open_archive, read_image, read_mask, read_record
from segan.data.synthetic import draw_archive
from segan.errors import SeganError

TRAIN = "ISIC-2017_Training_Data"
TRAIN_TRUTH = "ISIC-2017_Training_Part1_GroundTruth"


def draw(place: str, **counts: int) -> None:
    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(place, name), content)

    draw_archive(counts, 0, write, 32)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path) -> list[tuple[str, str]]:
    return [(pair.split, pair.id) for pair in open_archive(str(folder)).pairs]


# Listing


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.integration)])
def test_a_drawn_archive_is_all_pairs(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path) if where == "local" else request.getfixturevalue("bucket") + "/drawn"
    draw(place, train=3, validation=2, test=1)
    archive = open_archive(place)
    assert archive.rejects == []
    assert [pair.id for pair in archive.split("train")] == [f"ISIC_000000{i}" for i in range(3)]
    assert [pair.id for pair in archive.split("validation")] == ["ISIC_0000003", "ISIC_0000004"]
    assert archive.split("test") == [
        Pair(
            "ISIC_0000005",
            "test",
            f"{place}/ISIC-2017_Test_v2_Data/ISIC_0000005.jpg",
            f"{place}/ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000005_segmentation.png",
        )
    ]


@pytest.mark.parametrize(
    ("image", "mask", "split"),
    [
        (f"{TRAIN}/a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png", "train"),
        (f"deep/er/{TRAIN}/a.JPG", f"else/{TRAIN_TRUTH}/a_segmentation.PNG", "train"),
        (f"{TRAIN}/a.jpeg", f"{TRAIN_TRUTH}/a_segmentation.png", "train"),
        (f"{TRAIN}/a.png", f"{TRAIN_TRUTH}/a_segmentation.png", "train"),
        (
            "ISIC-2018_Validation_Data/a.jpg",
            "ISIC-2018_Validation_Part1_GroundTruth/a_segmentation.png",
            "validation",
        ),
        (
            "ISIC-2016_Test_Data/a.jpg",
            "ISIC-2016_Test_Part1_GroundTruth/a_segmentation.png",
            "test",
        ),
    ],
)
def test_folders_and_endings_as_they_occur(
    tmp_path: Path, image: str, mask: str, split: str
) -> None:
    touch(tmp_path, image, mask)
    assert found(tmp_path) == [(split, "a")]


def test_other_files_are_no_part_of_an_archive(tmp_path: Path) -> None:
    touch(
        tmp_path,
        f"{TRAIN}/a.jpg",
        f"{TRAIN}/a_superpixels.png",
        f"{TRAIN}/metadata.csv",
        f"{TRAIN_TRUTH}/a_segmentation.png",
        "ISIC-2017_Training_Part3_GroundTruth.csv",
        "LICENSE.txt",
        "holiday.jpg",
    )
    archive = open_archive(str(tmp_path))
    assert [pair.id for pair in archive.pairs] == ["a"]
    assert archive.rejects == []


def test_what_has_no_partner_is_rejected(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", f"{TRAIN}/b.jpg", f"{TRAIN_TRUTH}/b_segmentation.png")
    touch(tmp_path, f"{TRAIN_TRUTH}/c_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert [pair.id for pair in archive.pairs] == ["b"]
    assert archive.rejects == [
        {
            "name": f"{TRAIN}/a.jpg",
            "split": "train",
            "reason": "no mask; expected a_segmentation.png among the split's masks",
        },
        {
            "name": f"{TRAIN_TRUTH}/c_segmentation.png",
            "split": "train",
            "reason": "no image; expected c.jpg among the split's images",
        },
    ]


def test_a_mask_of_another_split_is_no_partner(tmp_path: Path) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", "ISIC-2017_Test_v2_Part1_GroundTruth/a_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert archive.pairs == []
    assert [row["split"] for row in archive.rejects] == ["train", "test"]


@pytest.mark.parametrize("second", [f"{TRAIN}/a.png", "ISIC-2016_Training_Data/a.jpg"])
def test_a_second_image_of_the_same_id_does_not_vanish(tmp_path: Path, second: str) -> None:
    touch(tmp_path, f"{TRAIN}/a.jpg", second, f"{TRAIN_TRUTH}/a_segmentation.png")
    archive = open_archive(str(tmp_path))
    assert len(archive.pairs) + len(archive.rejects) == 2


@pytest.mark.parametrize("name", [None, "notes.txt", "a.jpg", f"{TRAIN_TRUTH}/a_segmentation.png"])
def test_a_folder_without_images_says_what_was_expected(tmp_path: Path, name: str | None) -> None:
    touch(tmp_path, *[name] if name else [])
    with pytest.raises(SeganError) as caught:
        open_archive(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: no images found; expected folders such as")
    assert TRAIN in str(caught.value)


def test_a_split_without_pairs_names_those_there_are(tmp_path: Path) -> None:
    draw(str(tmp_path), train=1, test=1)
    with pytest.raises(SeganError, match="no pairs in split 'validation'; it has test, train"):
        open_archive(str(tmp_path)).split("validation")


# Reading


def save(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def bitmap(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (height, width), np.uint8) * 255


def pair_of(tmp_path: Path, image: np.ndarray, mask: np.ndarray) -> Pair:
    return Pair("a", "train", save(tmp_path / "a.png", image), save(tmp_path / "m.png", mask))


def test_a_record_is_what_pillow_plainly_gives(tmp_path: Path) -> None:
    draw(str(tmp_path), train=1)
    (pair,) = open_archive(str(tmp_path)).pairs
    assert pair.mask
    image, mask = Image.open(pair.image), Image.open(pair.mask)
    record = read_record(pair, (180, 135))
    np.testing.assert_array_equal(
        record.image, np.asarray(image.resize((180, 135), Image.Resampling.BILINEAR))
    )
    np.testing.assert_array_equal(
        record.mask[0] * 255, np.asarray(mask.resize((180, 135), Image.Resampling.NEAREST))
    )
    assert (record.image.shape, record.mask.shape) == ((135, 180, 3), (1, 135, 180))
    assert record.image.dtype == record.mask.dtype == np.uint8
    assert (record.id, record.original_size) == (pair.id, image.size)


def test_fine_detail_is_averaged_in_the_image_and_not_in_the_mask(tmp_path: Path) -> None:
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    record = read_record(pair_of(tmp_path, np.stack([checks] * 3, -1), checks), (64, 64))
    assert np.abs(record.image.astype(int) - 127).max() < 4
    assert set(np.unique(record.mask)) <= {0, 1}


def test_a_mask_keeps_the_nearest_pixels(tmp_path: Path) -> None:
    mask = bitmap(30, 40)
    image = np.zeros((30, 40, 3), np.uint8)
    small = read_record(pair_of(tmp_path, image, mask), (8, 10)).mask
    np.testing.assert_array_equal(small[0] * 255, mask[1::3, 2::5])
    same = read_record(pair_of(tmp_path, image, mask), (40, 30))
    np.testing.assert_array_equal(same.mask[0] * 255, mask)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_an_image_of_any_mode_is_read_in_colour(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode).save(path)
    image = read_image(str(path))
    assert (image.mode, image.size) == ("RGB", (9, 7))
    assert np.asarray(image).min() > 250


@pytest.mark.parametrize("fill", [0, 255])
def test_a_mask_may_be_all_skin_or_all_lesion(tmp_path: Path, fill: int) -> None:
    path = save(tmp_path / "m.png", np.full((7, 9), fill, np.uint8))
    np.testing.assert_array_equal(read_mask(path, (9, 7)), fill)


def encoded(image: Image.Image, kind: str) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))


@pytest.mark.parametrize("read", [read_image, lambda uri: read_mask(uri, (90, 90))])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected an image, found an empty file"),
        (b"<html>404 Not Found</html>", "expected an image, found 26 bytes that are none"),
        (encoded(NOISE, "JPEG")[:3000], "not a whole image (image file is truncated"),
        (encoded(NOISE, "PNG")[:9000], "not a whole image ("),
        (encoded(NOISE, "PNG")[:20], "not a whole image ("),
        (claiming(20_000, 20_000), "too large to be a photograph ("),
        (claiming(10_000, 10_000), "too large to be a photograph ("),
    ],
)
def test_what_is_no_image_is_rejected_by_name(
    tmp_path: Path, read: Callable[[str], object], content: bytes, said: str
) -> None:
    (tmp_path / "ISIC_0000007.jpg").write_bytes(content)
    with pytest.raises(RejectedError) as caught:
        read(str(tmp_path / "ISIC_0000007.jpg"))
    assert str(caught.value).startswith(f"ISIC_0000007.jpg: {said}")


def test_a_tiff_with_a_place_that_is_no_whole_number_is_rejected(tmp_path: Path) -> None:
    long, fraction = b"\x11\x01\x04\x00", b"\x11\x01\x0b\x00"
    (tmp_path / "a.tif").write_bytes(encoded(NOISE, "TIFF").replace(long, fraction))
    with pytest.raises(RejectedError, match="not a whole image"):
        read_image(str(tmp_path / "a.tif"))


def test_a_program_for_printers_is_no_image(tmp_path: Path) -> None:
    """Pillow would run Ghostscript on it, whatever the file's ending."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(RejectedError, match="expected an image, found 47 bytes that are none"):
        read_image(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@settings(max_examples=40)
@given(cut=st.integers(0, 4000), at=st.integers(0, 3999), patch=st.binary(max_size=8))
def test_however_a_file_is_damaged_it_is_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, kind: str, cut: int, at: int, patch: bytes
) -> None:
    content = encoded(NOISE.resize((32, 32)), kind)
    damaged = (content[:at] + patch + content[at + len(patch) :])[: len(content) - cut // 2]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    with contextlib.suppress(RejectedError):
        read_image(str(path))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("L", (8, 7)), "expected the image's 9 x 7 pixels, found 8 x 7"),
        (Image.new("L", (9, 8)), "expected the image's 9 x 7 pixels, found 9 x 8"),
        (Image.new("L", (9, 7), 1), "expected 0 and 255 alone, found 63 pixels between (1)"),
        (Image.new("L", (9, 7), 254), "expected 0 and 255 alone, found 63 pixels between (254)"),
        (Image.new("RGB", (9, 7)), "expected a mask with one 8-bit channel, found RGB"),
        (Image.new("RGBA", (9, 7)), "expected a mask with one 8-bit channel, found RGBA"),
        (Image.new("I;16", (9, 7)), "expected a mask with one 8-bit channel, found I;16"),
    ],
)
def test_a_mask_that_cannot_be_used_is_rejected(
    tmp_path: Path, mask: Image.Image, said: str
) -> None:
    mask.save(tmp_path / "m.png")
    with pytest.raises(RejectedError) as caught:
        read_mask(str(tmp_path / "m.png"), (9, 7))
    assert str(caught.value) == f"m.png: {said}"


def test_of_many_values_between_the_first_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    with pytest.raises(RejectedError) as caught:
        read_mask(path, (16, 16))
    assert str(caught.value) == (
        "m.png: expected 0 and 255 alone, found 254 pixels between (1, 2, 3, 4, ...)"
    )


# How many rejects are too many


@pytest.mark.parametrize(("rejected", "most"), [(1, 0.2), (0, 0.0), (5, 1.0), (0, 0.05)])
def test_up_to_the_share_is_allowed(rejected: int, most: float) -> None:
    rows = [{"name": "a", "split": "train", "reason": "r"}] * rejected
    archives.check_rejects(rows, 5, most, "here")


def test_above_the_share_the_first_are_named() -> None:
    rows = [{"name": f"{i}.jpg", "split": "train", "reason": f"reason {i}"} for i in range(7)]
    with pytest.raises(SeganError) as caught:
        archives.check_rejects(rows, 100, 0.05, "s3://bucket/a")
    said = str(caught.value)
    assert said.startswith("s3://bucket/a: 7 of 100 pairs rejected, more than the share of 0.05")
    assert "--max-rejects" in said
    assert "0.jpg: reason 0" in said
    assert "4.jpg: reason 4" in said
    assert "5.jpg" not in said

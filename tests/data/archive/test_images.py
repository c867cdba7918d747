"""Decoding of images and masks, and rejects by name."""

import contextlib
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from segan import storage
from segan.data.archive.images import (
    MAX_SCANS,
    count_scans,
    decode_frame,
    decode_image,
    decode_labels,
    decode_mask_frame,
)
from segan.data.archive.reader import Pair, open_archive, read_file, read_image
from segan.data.records.shards import read_record
from segan.data.synthetic import generate_archive, generate_pair
from segan.errors import RejectedError
from tests.data.archive.corruptions import (
    CORRUPTIONS,
    encode,
    encode_interlaced,
    palette,
    png,
    text_bomb,
)

BILINEAR = Image.Resampling.BILINEAR


def write_archive(place: str, **counts: int) -> None:
    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(place, name), content)

    generate_archive(counts, 0, write, 32)


def save(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


def random_mask(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (height, width), np.uint8) * 255


def make_pair(tmp_path: Path, image: np.ndarray, mask: np.ndarray) -> Pair:
    return Pair("a", "train", save(tmp_path / "a.png", image), save(tmp_path / "m.png", mask))


def test_a_record_equals_pillows_resize(tmp_path: Path) -> None:
    write_archive(str(tmp_path), train=1)
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


def test_the_image_is_antialiased_and_the_mask_is_not(tmp_path: Path) -> None:
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    record = read_record(make_pair(tmp_path, np.stack([checks] * 3, -1), checks), (64, 64))
    assert np.abs(record.image.astype(int) - 127).max() < 4
    assert set(np.unique(record.mask)) <= {0, 1}


def test_a_mask_keeps_the_nearest_pixels(tmp_path: Path) -> None:
    mask = random_mask(30, 40)
    image = np.zeros((30, 40, 3), np.uint8)
    small = read_record(make_pair(tmp_path, image, mask), (8, 10)).mask
    np.testing.assert_array_equal(small[0] * 255, mask[1::3, 2::5])
    same = read_record(make_pair(tmp_path, image, mask), (40, 30))
    np.testing.assert_array_equal(same.mask[0] * 255, mask)


# Colour

SCENE = Image.fromarray(generate_pair(0, 0, (160, 120))[0])


def difference(image: Image.Image, other: Image.Image) -> float:
    assert (image.mode, image.size) == (other.mode, other.size)
    return float(np.abs(np.asarray(image, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("RGB", "BMP"),
        ("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"),
    ],
)  # fmt: skip
def test_an_image_of_any_mode_is_read_in_colour(mode: str, kind: str) -> None:
    saved = SCENE.convert(mode)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    image = decode_image("a", encode(saved, kind, **options))
    assert difference(image, saved.convert("RGB")) < (2 if kind == "JPEG" else 0.1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_become_8(kind: str) -> None:
    wide = np.tile(np.array([0, 128, 129, 257, 32_768, 65_406, 65_407, 65_535], np.uint16), (16, 2))
    image = decode_image("a", encode(Image.fromarray(wide), kind))
    # Rounded to steps of 257: 128 is below half a step, 129 above.
    assert np.asarray(image)[3, :8, 1].tolist() == [0, 0, 1, 1, 128, 254, 255, 255]


def test_only_adobes_cmyk_is_inverted() -> None:
    inks = SCENE.convert("CMYK")
    adobes = encode(inks, "JPEG", quality=95)
    start = adobes.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", adobes, start + 2)
    plain = encode(ImageChops.invert(inks), "JPEG", quality=95)
    plain = plain[:start] + plain[start + 2 + length :]
    assert b"Adobe" in adobes
    assert b"Adobe" not in plain
    assert difference(decode_image("a", adobes), inks.convert("RGB")) < 2
    assert difference(decode_image("a", plain), inks.convert("RGB")) < 2


@pytest.mark.parametrize(("kind", "said"), [
    ("32 bits", "a.jpg: expected 8 or 16 bits per channel, found 32 (mode I)"),
    ("floating point", "a.jpg: expected 8 or 16 bits per channel, found 32 (mode F)"),
    ("transparent", "a.jpg: expected an opaque image, found transparent pixels"),
    ("transparent grey", "a.jpg: expected an opaque image, found transparent pixels"),
    ("transparent palette", "a.jpg: expected an opaque image, found transparent pixels"),
])  # fmt: skip
def test_unsupported_modes_are_rejected(tmp_path: Path, kind: str, said: str) -> None:
    SCENE.save(tmp_path / "a.jpg")
    CORRUPTIONS[kind].apply(tmp_path / "a.jpg", tmp_path / "m.png", np.random.default_rng(0))
    for read in (read_image, lambda uri: decode_frame("a.jpg", storage.read_bytes(uri), (9, 7))):
        with pytest.raises(RejectedError) as caught:
            read(str(tmp_path / "a.jpg"))
        assert str(caught.value) == said


def test_a_transparent_colour_is_rejected_if_it_occurs() -> None:
    grey = Image.new("L", (20, 20), 7)
    assert decode_image("a", encode(grey, "PNG", transparency=8)).getpixel((3, 3)) == (7, 7, 7)
    with pytest.raises(RejectedError, match="transparent pixels"):
        decode_image("a", encode(grey, "PNG", transparency=7))


def test_an_interlaced_png_is_read() -> None:
    grey = np.asarray(SCENE.convert("L"))
    np.testing.assert_array_equal(
        np.asarray(decode_image("a", encode_interlaced(grey)))[..., 0], grey
    )


@pytest.mark.parametrize("kind", ["MPO", "TIFF", "PNG"])
def test_the_first_of_several_images_is_read(kind: str) -> None:
    content = encode(SCENE, kind, save_all=True, append_images=[Image.new("RGB", SCENE.size)])
    assert Image.open(io.BytesIO(content)).n_frames == 2
    assert difference(decode_image("a", content), SCENE) < 5


# Orientation and draft mode


# The transposes that an orientation undoes.
STORED_TRANSPOSES = {
    1: [], 2: ["FLIP_LEFT_RIGHT"], 3: ["ROTATE_180"], 4: ["FLIP_TOP_BOTTOM"],
    5: ["FLIP_LEFT_RIGHT", "ROTATE_90"], 6: ["ROTATE_90"],
    7: ["FLIP_LEFT_RIGHT", "ROTATE_270"], 8: ["ROTATE_270"],
}  # fmt: skip


def encode_with_orientation(upright: Image.Image, orientation: int, kind: str) -> bytes:
    for step in STORED_TRANSPOSES[orientation]:
        upright = upright.transpose(Image.Transpose[step])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(upright, kind, exif=exif, quality=95)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", STORED_TRANSPOSES)
def test_an_images_orientation_is_applied(kind: str, orientation: int) -> None:
    scene = SCENE.resize((320, 240), Image.Resampling.BICUBIC)  # a JPEG of it is read at 1/4
    content = encode_with_orientation(scene, orientation, kind)
    assert difference(decode_image("a", content), scene) < 2
    frame, size = decode_frame("a", content, (45, 30))
    assert size == scene.size
    assert difference(Image.fromarray(frame), scene.resize((45, 30), BILINEAR)) < 2


@pytest.mark.parametrize("orientation", STORED_TRANSPOSES)
def test_a_masks_orientation_is_applied(orientation: int) -> None:
    mask = random_mask(21, 30)
    content = encode_with_orientation(Image.fromarray(mask), orientation, "PNG")
    np.testing.assert_array_equal(decode_mask("m", content, (30, 21)), mask)


@pytest.mark.parametrize("times", [1.4, 2.9, 3.1, 5, 6.1, 9, 12.1])
def test_a_frame_is_the_full_image_resized(times: float) -> None:
    size = (round(60 * times), round(45 * times))
    content = encode(Image.fromarray(generate_pair(0, 1, size)[0]), "JPEG", quality=92)
    frame, original = decode_frame("a", content, (60, 45))
    whole = decode_image("a", content)
    assert original == whole.size == size
    assert difference(Image.fromarray(frame), whole.resize((60, 45), BILINEAR)) < (
        1 if times > 3 else 1e-9
    )


@pytest.mark.parametrize("fill", [0, 255])
def test_a_mask_may_be_all_skin_or_all_lesion(tmp_path: Path, fill: int) -> None:
    path = save(tmp_path / "m.png", np.full((7, 9), fill, np.uint8))
    np.testing.assert_array_equal(read_mask(path, (9, 7)), fill)


def decode_mask(name: str, content: bytes, size: tuple[int, int]) -> np.ndarray:
    """A mask at its own size, of 0 and 255."""
    return decode_mask_frame(name, content, size, size) * 255


def read_mask(path: str, size: tuple[int, int]) -> np.ndarray:
    return decode_mask(Path(path).name, read_file(path), size)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90), np.uint8))


@pytest.mark.parametrize("read", [read_image, lambda uri: read_mask(uri, (90, 90))])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected an image, found an empty file"),
        (b"<html>404 Not Found</html>", "expected an image, found 26 bytes of another format"),
        (encode(NOISE, "JPEG")[:2000], "damaged image (image file is truncated"),
        (encode(NOISE, "PNG")[:4000], "damaged image ("),
        (encode(NOISE, "PNG")[:20], "damaged image ("),
        (png(20_000, 20_000), "too large for a photograph ("),
        (
            png(10_000, 10_000),
            "too large for a photograph (100000000 pixels; expected at most 80000000",
        ),
        (text_bomb(b"zTXt"), "damaged image (Decompressed data too large"),
    ],
)
def test_an_invalid_image_is_rejected_by_name(
    tmp_path: Path, read: Callable[[str], object], content: bytes, said: str
) -> None:
    (tmp_path / "ISIC_0000007.jpg").write_bytes(content)
    with pytest.raises(RejectedError) as caught:
        read(str(tmp_path / "ISIC_0000007.jpg"))
    assert str(caught.value).startswith(f"ISIC_0000007.jpg: {said}")


def test_a_tiff_with_a_fractional_offset_is_rejected() -> None:
    long, fraction = b"\x11\x01\x04\x00", b"\x11\x01\x0b\x00"
    with pytest.raises(RejectedError, match="damaged image"):
        decode_image("a.tif", encode(NOISE, "TIFF").replace(long, fraction))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (encode(SCENE, "WEBP"), "WebP"),
        (encode(SCENE, "GIF"), "GIF"),
        (encode(SCENE, "JPEG2000"), "JPEG 2000"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"%PDF-1.7", "PDF"),
        (b'<?xml version="1.0"?>\n<svg/>', "SVG"),
    ],
)
def test_another_format_is_named(content: bytes, found: str) -> None:
    said = f"^a.jpg: expected an image, found {found}; convert it to JPEG, PNG, BMP or TIFF$"
    with pytest.raises(RejectedError, match=said):
        decode_image("a.jpg", content)


# Scans of a JPEG


def with_more_scans(content: bytes, scans: int) -> bytes:
    """A progressive JPEG with more scans of its last kind, each a run without coefficients."""
    start, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    header_end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
    return content[:end] + scans * content[start:header_end] + content[end:]


def test_the_scans_of_a_jpeg_are_counted() -> None:
    baseline, progressive = (encode(SCENE, "JPEG", progressive=p) for p in (False, True))
    assert (count_scans(baseline), count_scans(progressive)) == (1, 10)
    assert count_scans(with_more_scans(progressive, 7)) == 17


def test_markers_within_segments_and_after_the_end_are_no_scans() -> None:
    """Such as those of a thumbnail in the EXIF data, or of the second image of an MPO."""
    exif = Image.Exif()
    exif[0x010E] = "description"
    content = encode(SCENE, "JPEG", exif=exif.tobytes() + b"\xff\xda\0\x08" * 200)
    assert content.count(b"\xff\xda") > MAX_SCANS
    assert count_scans(content) == 1
    assert difference(decode_image("a", content), SCENE) < 5
    pictures = encode(SCENE, "MPO", save_all=True, append_images=[SCENE])
    assert count_scans(pictures) == 1


@pytest.mark.parametrize("fill", [b"", b"\xff\xff", b"\0junk", b"\xff\xd3\xff\0"])
def test_a_jpeg_of_too_many_scans_is_rejected_before_decoding(fill: bytes) -> None:
    """However the markers are separated: libjpeg skips what is between them."""
    progressive = encode(SCENE, "JPEG", progressive=True)
    end = progressive.rindex(b"\xff\xd9")
    scan = with_more_scans(progressive, 1)[end:-2]
    content = progressive[:end] + (fill + scan) * MAX_SCANS + progressive[end:]
    decoders: list[Callable[[], object]] = [
        lambda: decode_image("a.jpg", content),
        lambda: decode_frame("a.jpg", content, (9, 7)),
        lambda: decode_mask_frame("a.jpg", content, SCENE.size, (9, 7)),
    ]
    for decode in decoders:
        with pytest.raises(RejectedError, match=r"^a\.jpg: expected a JPEG of at most 100 scans"):
            decode()


def test_postscript_is_rejected() -> None:
    """Pillow would run Ghostscript on it, whatever the file's extension."""
    with pytest.raises(RejectedError, match="expected an image, found 47 bytes of another format"):
        decode_image("a.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


@pytest.mark.parametrize(
    ("size", "accepted"),
    [
        ((16, 16), True),
        ((15, 40), False),
        ((16, 160), True),
        ((161, 16), False),
        ((1, 60_000), False),
    ],
)
def test_size_and_aspect_ratio_are_checked(size: tuple[int, int], accepted: bool) -> None:
    content = encode(Image.new("L", size), "PNG")
    if accepted:
        assert decode_image("a.png", content).size == size
        return
    for decode in (decode_image, lambda *file: decode_frame(*file, (9, 7))):
        with pytest.raises(RejectedError, match=f"^a.png: .* found {size[0]} x {size[1]}$"):
            decode("a.png", content)


# Damage


@pytest.mark.parametrize("kind", ["JPEG", "progressive JPEG", "PNG", "TIFF", "LZW TIFF", "BMP"])
@settings(max_examples=60)
@given(cut=st.integers(0, 1000), at=st.floats(0, 1), patch=st.binary(max_size=8))
def test_however_a_file_is_damaged_it_is_decoded_or_rejected(
    kind: str, cut: int, at: float, patch: bytes
) -> None:
    options = {"progressive JPEG": {"progressive": True}, "LZW TIFF": {"compression": "tiff_lzw"}}
    content = encode(NOISE.resize((32, 32)), kind.split()[-1], **options.get(kind, {}))
    start = int(at * len(content))
    damaged = content[:start] + patch + content[start + len(patch) :]
    damaged = damaged[: len(damaged) - max(0, cut - 500)]
    for decode in (
        lambda: decode_image("a", damaged),
        lambda: decode_frame("a", damaged, (9, 7)),
        lambda: decode_labels("a", damaged, (32, 32), (9, 7), [1, 2]),
        lambda: decode_mask_frame("a", damaged, (32, 32), (9, 7)),
    ):
        with contextlib.suppress(RejectedError):
            decode()


@given(st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0"]), st.binary())
def test_random_bytes_are_rejected(start: bytes, rest: bytes) -> None:
    with pytest.raises(RejectedError, match=r"^a\.jpg: "):
        decode_image("a.jpg", start + rest)


# Masks


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_a_mask_of_one_bit_or_of_a_palette_is_the_same_mask(mode: str) -> None:
    expected = random_mask(21, 30)
    mask = Image.fromarray(expected)
    content = encode(
        palette(0, 0, 0, 255, 255, 255)(mask) if mode == "P" else mask.convert(mode), "PNG"
    )
    assert Image.open(io.BytesIO(content)).mode == mode
    np.testing.assert_array_equal(decode_mask("m.png", content, (30, 21)), expected)
    small = decode_mask_frame("m.png", content, (30, 21), (10, 7))
    np.testing.assert_array_equal(small * 255, expected[1::3, 1::3])
    assert small.dtype == np.uint8


def test_a_mask_of_other_colours_is_rejected() -> None:
    content = encode(palette(0, 0, 0, 254, 254, 254)(Image.fromarray(random_mask(21, 30))), "PNG")
    with pytest.raises(RejectedError, match=r"^m\.png: expected only black and white, found other"):
        decode_mask("m.png", content, (30, 21))


def test_a_mask_without_lesion_needs_no_second_colour() -> None:
    content = encode(palette(0, 0, 0)(Image.new("L", (30, 21))), "PNG")
    assert not decode_mask("m.png", content, (30, 21)).any()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("L", (8, 7)), "expected the image's 9 x 7 pixels, found 8 x 7"),
        (Image.new("L", (9, 8)), "expected the image's 9 x 7 pixels, found 9 x 8"),
        (Image.new("L", (9, 7), 1), "expected only 0 and 255, found 63 pixels of other values (1)"),
        (
            Image.new("L", (9, 7), 254),
            "expected only 0 and 255, found 63 pixels of other values (254)",
        ),
        (Image.new("RGB", (9, 7)), "expected a mask with one 8-bit channel, found RGB"),
        (Image.new("RGBA", (9, 7)), "expected a mask with one 8-bit channel, found RGBA"),
        (Image.new("I;16", (9, 7)), "expected a mask with one 8-bit channel, found I;16"),
    ],
)
def test_an_invalid_mask_is_rejected(tmp_path: Path, mask: Image.Image, said: str) -> None:
    mask.save(tmp_path / "m.png")
    with pytest.raises(RejectedError) as caught:
        read_mask(str(tmp_path / "m.png"), (9, 7))
    assert str(caught.value) == f"m.png: {said}"


def test_the_first_invalid_values_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    with pytest.raises(RejectedError) as caught:
        read_mask(path, (16, 16))
    assert str(caught.value) == (
        "m.png: expected only 0 and 255, found 254 pixels of other values (1, 2, 3, 4, ...)"
    )

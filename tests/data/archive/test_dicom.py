"""DICOM photographs give the pixels that were put into them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segan import storage
from segan.data.archive.dicom import is_dicom
from segan.data.archive.images import decode_frame, decode_image, read_image_size
from segan.data.archive.reader import open_archive
from segan.data.synthetic import generate_pair
from segan.errors import RejectedError
from segan.inference.masks import find_images

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

SIZE = (90, 68)
VL_PHOTOGRAPHIC_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.4"


def photograph() -> np.ndarray:
    """uint8 [H, W, 3]"""
    return generate_pair(0, 0, SIZE)[0]


def make_dataset(
    pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **values: Any
) -> Dataset:
    """A photographic image of native pixels, uint8 or uint16 [H, W] or [H, W, 3]."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = VL_PHOTOGRAPHIC_IMAGE
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.Modality = "XC"
    bits = 8 * pixels.dtype.itemsize
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    dataset.PixelData = pixels.tobytes()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    sink = io.BytesIO()
    pydicom.dcmwrite(sink, dataset, enforce_file_format=True)
    return sink.getvalue()


def decode(dataset: Dataset) -> np.ndarray:
    content = to_bytes(dataset)
    assert is_dicom(content)
    assert read_image_size("a.dcm", content) == SIZE
    image = decode_image("a.dcm", content)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_native_colour_is_exact() -> None:
    pixels = photograph()
    np.testing.assert_array_equal(decode(make_dataset(pixels)), pixels)
    planar = make_dataset(pixels, PlanarConfiguration=1)
    planar.PixelData = pixels.transpose(2, 0, 1).tobytes()
    np.testing.assert_array_equal(decode(planar), pixels)


def test_16_bits_per_channel_become_8() -> None:
    pixels = photograph().astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(make_dataset(pixels)), photograph())


def test_ycbcr_becomes_rgb() -> None:
    ycbcr = np.asarray(Image.fromarray(photograph()).convert("YCbCr"))
    found = decode(make_dataset(ycbcr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(found.astype(int) - photograph()).max() <= 3  # rounded twice


@pytest.mark.parametrize(
    ("syntax", "kind", "options", "interpretation"),
    [
        (JPEGBaseline8Bit, "JPEG", {"quality": 95}, "YBR_FULL_422"),
        (JPEG2000Lossless, "JPEG2000", {"irreversible": False, "mct": 1}, "YBR_RCT"),
    ],
)
def test_compressed_pixels_are_those_of_the_stream(
    syntax: str, kind: str, options: dict[str, Any], interpretation: str
) -> None:
    stream = io.BytesIO()
    extra = {"no_jp2": True} if kind == "JPEG2000" else {}
    Image.fromarray(photograph()).save(stream, kind, **options, **extra)
    dataset = make_dataset(photograph(), syntax, PhotometricInterpretation=interpretation)
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    expected = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB")).astype(int)
    assert np.abs(decode(dataset) - expected).max() <= (0 if kind == "JPEG2000" else 2)


def test_run_length_encoded_pixels_are_exact() -> None:
    dataset = make_dataset(photograph())
    dataset.compress(RLELossless)
    np.testing.assert_array_equal(decode(dataset), photograph())


def test_a_palette_is_looked_up() -> None:
    image = Image.fromarray(photograph()).quantize(64)
    palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)[:64]
    indices = np.asarray(image)
    dataset = make_dataset(indices, PhotometricInterpretation="PALETTE COLOR")
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [64, 0, 16])
        table = (palette[:, channel].astype(np.uint16) * 257).tobytes()
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table)
    np.testing.assert_array_equal(decode(dataset), palette[indices])


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_of_12_bits_in_16(interpretation: str) -> None:
    grey = photograph()[..., 0]
    values = (grey.astype(np.uint16) << 4) | (grey >> 4)
    dataset = make_dataset(
        values, BitsStored=12, HighBit=11, PhotometricInterpretation=interpretation
    )
    expected = 255 - grey if interpretation == "MONOCHROME1" else grey
    np.testing.assert_array_equal(decode(dataset)[..., 1], expected)


def test_a_window_is_applied() -> None:
    """Of 1000 to 2000: below black, above white, linear between."""
    values = np.tile(np.linspace(0, 4095, SIZE[0]).astype(np.uint16), (SIZE[1], 1))
    dataset = make_dataset(values, BitsStored=12, HighBit=11, WindowCenter=1500, WindowWidth=1000)
    found = decode(dataset)[0, :, 0].astype(float)
    expected = ((values[0] - 1000.0) / 1000 * 255).clip(0, 255)
    assert np.abs(found - expected).max() <= 1


def reject(change: Callable[[Dataset], object]) -> str:
    dataset = make_dataset(photograph())
    change(dataset)
    with pytest.raises(RejectedError) as error:
        decode_image("a.dcm", to_bytes(dataset))
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: setattr(d, "NumberOfFrames", 3), "one frame, found 3 frames"),
        (lambda d: d.__delattr__("PixelData"), "damaged image"),
        (lambda d: setattr(d, "PixelData", b"short!"), "damaged image"),
        (lambda d: setattr(d, "Rows", 60_000), "aspect ratio"),
        (lambda d: d.update({"Rows": 60_000, "Columns": 60_000}), "too large for a photograph"),
        (lambda d: setattr(d, "PhotometricInterpretation", "XYB"), "grey or colour, found XYB"),
    ],
)
def test_what_is_no_photograph_is_rejected(
    change: Callable[[Dataset], object], message: str
) -> None:
    assert message in reject(change)


def test_a_deflated_file_is_rejected_before_it_is_inflated() -> None:
    content = to_bytes(
        make_dataset(np.zeros((68, 90, 3), np.uint8), DeflatedExplicitVRLittleEndian)
    )
    with pytest.raises(RejectedError, match="transfer syntax"):
        read_image_size("a.dcm", content)


@pytest.mark.parametrize("length", [132, 140, 300, 1000])
def test_a_truncated_file_is_rejected(length: int) -> None:
    with pytest.raises(RejectedError):
        decode_image("a.dcm", to_bytes(make_dataset(photograph()))[:length])


def test_random_changes_are_decoded_or_rejected() -> None:
    content = to_bytes(make_dataset(photograph()))
    rng, messages = np.random.default_rng(0), []
    for _ in range(200):
        changed = bytearray(content)
        for position in rng.integers(132, 900, 3):
            changed[position] = rng.integers(256)
        try:
            decode_image("a.dcm", bytes(changed))
        except RejectedError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith("a.dcm: ") for message in messages)


def test_an_archive_and_a_folder_may_hold_dicom(tmp_path: Path) -> None:
    pixels, mask = generate_pair(0, 0, SIZE)
    image = tmp_path / "ISIC-2017_Training_Data" / "ISIC_0000000.dcm"
    image.parent.mkdir()
    image.write_bytes(to_bytes(make_dataset(pixels)))
    truth = tmp_path / "ISIC-2017_Training_Part1_GroundTruth" / "ISIC_0000000_segmentation.png"
    truth.parent.mkdir()
    Image.fromarray(mask).save(truth)
    (pair,) = open_archive(str(tmp_path)).pairs
    assert pair.image == str(image)
    assert find_images(str(image.parent)) == [str(image)]
    frame, size = decode_frame("a.dcm", storage.read_bytes(pair.image), (45, 34))
    assert size == SIZE
    expected = Image.fromarray(pixels).resize((45, 34), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(frame, np.asarray(expected))


def test_a_file_that_only_begins_like_dicom_is_rejected() -> None:
    for rest in (b"", struct.pack("<HH", 2, 0), bytes(2000)):
        with pytest.raises(RejectedError):
            decode_image("a.dcm", bytes(128) + b"DICM" + rest)

"""PNG masks have the pixels that Pillow decodes, or are left to it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from segan.data.archive import png
from tests.data.archive.corruptions import chunk

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def filtered(pixels: np.ndarray, filters: list[int]) -> bytes:
    """The rows with their filters applied (PNG specification, section 9.2)."""
    rows = []
    height, width = pixels.shape
    padded = np.zeros((height + 1, width + 1), int)
    padded[1:, 1:] = pixels
    for y, kind in enumerate(filters, 1):
        left, above, corner = padded[y, :-1], padded[y - 1, 1:], padded[y - 1, :-1]
        distances = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
        nearest = np.argmin(distances, axis=0)  # the first of the nearest, as specified
        paeth = np.choose(nearest, (left, above, corner))
        predicted = (0 * left, left, above, (left + above) // 2, paeth)[kind]
        rows.append(bytes([kind]) + ((padded[y, 1:] - predicted) % 256).astype(np.uint8).tobytes())
    return b"".join(rows)


def encode(pixels: np.ndarray, filters: list[int], *more: bytes, form: tuple[int, ...]) -> bytes:
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], *form)
    data = zlib.compress(filtered(pixels, filters))
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(parts)


def decode(content: bytes, max_pixels: int = 10_000) -> np.ndarray | None:
    return png.decode_black_and_white(content, max_pixels, min_pixels=1)


def decode_by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))
MASKS = arrays(np.bool_, SHAPES).map(lambda mask: mask.astype(np.uint8) * 255)
IMAGES = arrays(np.uint8, SHAPES, elements=st.sampled_from([0, 255, 254, 1, 127]))
GREYSCALE = (8, 0, 0, 0, 0)


@given(MASKS, st.data())
def test_a_mask_of_any_filters_but_the_average(mask: np.ndarray, data: st.DataObject) -> None:
    filters = [data.draw(st.sampled_from([0, 1, 2, 4])) for _ in mask]
    content = encode(mask, filters, form=GREYSCALE)
    assert np.array_equal(decode_by_pillow(content), mask)
    found = decode(content)
    assert found is not None
    assert np.array_equal(found, mask)


@given(IMAGES, st.data())
def test_other_values_are_right_or_left_to_pillow(image: np.ndarray, data: st.DataObject) -> None:
    filters = [data.draw(st.integers(0, 4)) for _ in image]
    content = encode(image, filters, form=GREYSCALE)
    found = decode(content)
    assert found is None or np.array_equal(found, decode_by_pillow(content))


@given(st.data())
def test_a_damaged_file_is_left_to_pillow(data: st.DataObject) -> None:
    mask = np.eye(9, dtype=np.uint8) * 255
    content = bytearray(encode(mask, [2] * 9, form=GREYSCALE))
    position = data.draw(st.integers(0, len(content) - 13))  # all but the last chunk
    content[position] ^= data.draw(st.integers(1, 255))
    assert decode(bytes(content)) is None
    assert decode(bytes(content[:position])) is None


@pytest.mark.parametrize(
    ("form", "more"),
    [
        ((8, 3, 0, 0, 0), (chunk(b"PLTE", bytes(6)),)),
        ((8, 0, 0, 0, 1), ()),
        (GREYSCALE, (chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0"),)),
    ],
)
def test_another_kind_is_left_to_pillow(form: tuple[int, ...], more: tuple[bytes, ...]) -> None:
    mask = np.zeros((9, 9), np.uint8)
    assert decode(encode(mask, [0] * 9, *more, form=form)) is None


def test_more_rows_or_pixels_than_expected_are_left_to_pillow() -> None:
    mask = np.zeros((9, 9), np.uint8)
    content = encode(mask, [0] * 9, form=GREYSCALE)
    assert decode(content, 81) is not None
    assert decode(content, 80) is None
    assert png.decode_black_and_white(content, 81, min_pixels=82) is None
    bomb = chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, *GREYSCALE))
    content = SIGNATURE + header + bomb + chunk(b"IEND", b"")
    assert decode(content) is None

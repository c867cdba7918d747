"""Turns what `Predictor.predict` accepts into images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from segan.data.archive.images import decode_image, to_upright_rgb
from segan.data.archive.reader import read_image
from segan.errors import UsageError

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

_NAME = "the image"  # in messages, of one that has no name
_EXPECTED = (
    "expected an array [height, width, 3] or [height, width] of uint8, uint16, or floats in [0, 1]"
)


def to_image(source: ImageSource) -> Image.Image:
    """An upright image in RGB, 8 bits per channel.

    Args:
        source: a path or s3:// URI; a file's content; a Pillow image, to which its EXIF orientation
            is applied; or an array, channels last: uint8, uint16, or floats in [0, 1].

    Raises:
        UsageError: `source` is of another type, or an array of another shape, type or range.
        RejectedError: the image cannot be used, see `segan.data.archive.images`.
        StorageError: it cannot be read.
    """
    if isinstance(source, str | os.PathLike):
        return read_image(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(_NAME, bytes(source))
    if isinstance(source, Image.Image):
        return to_upright_rgb(Path(getattr(source, "filename", "") or _NAME).name, source)
    if isinstance(source, np.ndarray):
        return to_upright_rgb(_NAME, Image.fromarray(_to_uint8(source)))
    raise UsageError(
        f"expected a path, bytes, a Pillow image or an array, found {type(source).__name__}"
    )


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8 [H, W] or [H, W, 3]; raises UsageError if they are not those of an image."""
    values: np.ndarray[Any, Any] = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    if values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,)):
        hint = "; channels come last" if pixels.ndim == 3 and pixels.shape[0] in (1, 3) else ""
        raise UsageError(f"{_EXPECTED}, found the shape {list(pixels.shape)}{hint}")
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(values.dtype, np.floating):
        raise UsageError(f"{_EXPECTED}, found {values.dtype}")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # also NaN
        raise UsageError(f"{_EXPECTED}, found floats from {low:g} to {high:g}")
    return (values * 255).round().astype(np.uint8)

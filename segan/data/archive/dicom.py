"""Decodes photographs in DICOM files, such as dermoscopy's VL Photographic Image objects.

pydicom, the extra `segan[dicom]`, parses the file and undoes its compression with Pillow.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from segan.errors import RejectedError

if TYPE_CHECKING:
    from pydicom import Dataset

EXTENSION = ".dcm"
_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"
# Deflated, the whole file would be inflated to any size before its header can be read.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")


def is_dicom(content: bytes) -> bool:
    """Whether a file is in DICOM's format, by its preamble."""
    return content[_PREAMBLE_BYTES : _PREAMBLE_BYTES + len(_MAGIC)] == _MAGIC


def read_dicom_size(name: str, content: bytes) -> tuple[int, int]:
    """(width, height) in pixels, by the header.

    Raises:
        RejectedError: it is no single photograph.
    """
    dataset = _read(name, content, stop_before_pixels=True)
    return int(dataset.Columns), int(dataset.Rows)


def decode_dicom(name: str, content: bytes) -> Image.Image:
    """A photograph in RGB, or in grey with the file's window, as 8 bits per channel.

    Raises:
        RejectedError: it is no single photograph, or pydicom is not installed. What is damaged
            raises the errors of pydicom and Pillow.
    """
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    dataset = _read(name, content)
    if dataset.PhotometricInterpretation in _GREY:
        return Image.fromarray(_to_grey(pixel_array(dataset), dataset))
    pixels = pixel_array(dataset)  # YCbCr is returned as RGB
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
        bits = 8 * pixels.dtype.itemsize
    return Image.fromarray(_scale(pixels, 0, 2**bits - 1))


def _read(name: str, content: bytes, stop_before_pixels: bool = False) -> Dataset:
    try:
        import pydicom
    except ImportError:
        raise RejectedError(
            f"{name}: a DICOM file, which pydicom reads; install segan with its extra dicom (in "
            "the checkout: pip install -e '.[dicom]')"
        ) from None
    if _DEFLATED in content:
        raise RejectedError(f"{name}: expected another transfer syntax of DICOM than Deflated")
    dataset = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=stop_before_pixels)
    kind = dataset.get("PhotometricInterpretation", "none")
    if "Rows" not in dataset or kind not in (*_GREY, *_COLOUR):
        raise RejectedError(f"{name}: expected a DICOM image in grey or colour, found {kind}")
    if (frames := int(dataset.get("NumberOfFrames") or 1)) != 1:
        raise RejectedError(f"{name}: expected a DICOM image of one frame, found {frames} frames")
    return dataset


def _to_grey(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Grey values through the file's rescaling and window, or over their whole range without."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    rescaled = apply_modality_lut(values, dataset)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        shown = apply_voi_lut(rescaled, dataset).astype(np.float64)
    else:
        shown = rescaled.astype(np.float64)
    half = 2.0 ** (int(dataset.BitsStored) - 1)
    is_signed = int(dataset.PixelRepresentation) == 1
    low, high = (-half, half - 1) if is_signed else (0.0, 2 * half - 1)
    grey = _scale(shown, low, high)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values of [low, high] as uint8."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return scaled.round().clip(0, 255).astype(np.uint8)

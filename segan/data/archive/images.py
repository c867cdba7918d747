"""Decodes images and masks, at full size or as frames, and validates them.

Sizes are (width, height) in pixels. Whatever a file contains, its decoder returns an image or
raises RejectedError.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageFile, UnidentifiedImageError

from segan.data.archive.dicom import EXTENSION as DICOM_EXTENSION
from segan.data.archive.dicom import decode_dicom, is_dicom, read_dicom_size
from segan.data.archive.png import decode_black_and_white
from segan.errors import RejectedError

# A subset of what Pillow opens: for PostScript it would run Ghostscript.
PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
FORMATS = (*PILLOW_FORMATS, "DICOM")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", DICOM_EXTENSION)
MAX_PIXELS = 80_000_000  # the largest image of ISIC 2017 has 30 million
# Of a JPEG. Each scan may pass over all pixels, however few bytes it has: at 80 megapixels 1000
# scans of 114 bytes take 72 s. Encoders write about ten; dermatoscopes write one.
MAX_SCANS = 100
MIN_SIDE = 16
MAX_ASPECT = 10

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size (Pillow's draft mode) if the result is still at
# least this many times as large as the frame. Images of 5 and 6 megapixels are decoded at 1/8, a
# seventh faster than at 1/4 and a third faster than at 1/2. Their frames differ from those of the
# full image by 0.3 of 255 on average and 5 at most; with a factor of 1 by 0.7 and up to 33.
DRAFT_OVERSAMPLING = 1.5

# ImageOps.exif_transpose also rewrites the metadata, and fails where these are damaged.
_EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED_SIDES = (5, 6, 7, 8)  # orientations that swap width and height
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_MARKERS_WITHOUT_LENGTH = frozenset(b"\x01\xd0\xd1\xd2\xd3\xd4\xd5\xd6\xd7\xd8")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9

# Other formats that cameras and browsers write, for the message: by their first bytes.
_OTHER_FORMATS = (
    ("WebP", rb"RIFF....WEBP"),
    ("GIF", rb"GIF8"),
    ("HEIC", rb"....ftyp(?:hei|hev|mif1|msf1)"),
    ("AVIF", rb"....ftypavi"),
    ("JPEG 2000", rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\x00\x00\x00\x0cJXL |\xff\x0a"),
    ("PDF", rb"%PDF-"),
    ("SVG", rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?(?:<!DOCTYPE[^>]*>\s*)?<svg"),
)
_BLACK_OR_WHITE = ((0, 0, 0), (255, 255, 255))


def decode_image(name: str, content: bytes) -> Image.Image:
    """Decodes an image at full size, in RGB, with its EXIF orientation applied.

    Raises:
        RejectedError: it is damaged, is not an opaque image of 8 or 16 bits per channel, or its
            size or aspect ratio is out of range.
    """
    with _decode_errors(name, content):
        return to_upright_rgb(name, _open_image(name, content))


def to_upright_rgb(name: str, image: Image.Image) -> Image.Image:
    """An opened image in RGB, 8 bits per channel, with its EXIF orientation applied.

    Raises:
        RejectedError: it is not an opaque image of 8 or 16 bits per channel.
    """
    orientation = _read_orientation(image)
    return _apply_orientation(_to_rgb(name, image), orientation)


def read_image_size(name: str, content: bytes) -> tuple[int, int]:
    """(width, height) of an image as it is stored, by its header; raises as `decode_image`."""
    with _decode_errors(name, content):
        if is_dicom(content):
            return check_size(name, read_dicom_size(name, content))
        return check_size(name, _open_file(name, content).size)


def decode_frame(
    name: str, content: bytes, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes an image as a frame of `size`: bilinear with antialiasing, orientation applied.

    Returns:
        The frame, uint8 [H, W, 3], and the size of the upright image.

    Raises:
        RejectedError: as `decode_image`.
    """
    with _decode_errors(name, content):
        image = _open_image(name, content)
        orientation = _read_orientation(image)
        original_size, stored_size = image.size, size
        if orientation in _SWAPPED_SIDES:
            original_size, stored_size = original_size[::-1], size[::-1]
        width, height = (int(side * DRAFT_OVERSAMPLING) for side in stored_size)
        draft = image.draft(None, (width, height))
        box = draft[1] if draft else None
        frame = _to_rgb(name, image).resize(stored_size, Image.Resampling.BILINEAR, box)
        return np.asarray(_apply_orientation(frame, orientation)), original_size


def decode_mask_frame(
    name: str, content: bytes, original_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Decodes a mask as uint8 [H, W] of 0 and 1 for a frame of `size`, by nearest neighbour.

    Args:
        original_size: of its image, after the EXIF orientation.

    Raises:
        RejectedError: it is damaged, or has another size than `original_size`, or another mode or
            other values.
    """
    with _decode_errors(name, content):
        mask = _open_mask(name, content, original_size).resize(size, Image.Resampling.NEAREST)
        return np.asarray(mask) & 1  # 255 & 1 is 1


def decode_labels(
    name: str,
    content: bytes,
    original_size: tuple[int, int],
    size: tuple[int, int],
    values: Sequence[int],
) -> np.ndarray:
    """Decodes a label image as masks, uint8 [values, H, W] of 0 and 1, by nearest neighbour.

    The labels of a palette image are the palette's indices.

    Args:
        original_size: of its image, after the EXIF orientation.
        size: (width, height) of the masks.
        values: the label of each mask; 0 is the background.

    Raises:
        RejectedError: it is damaged, or has another size, mode or other values.
    """
    with _decode_errors(name, content):
        image: Image.Image = _open_file(name, content)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I;16"):
            raise RejectedError(
                f"{name}: expected a label image with one channel of 8 or 16 bits, found "
                f"{image.mode}"
            )
        image = _to_upright_mask(name, image, original_size)
        if image.mode == "1":
            image = Image.fromarray(np.asarray(image).astype(np.uint8))
        _check_labels(name, image, values)
        if image.mode.startswith("I;16"):
            image = image.convert("I")  # of more than 8 bits, Pillow resizes this alone
        labels = np.asarray(image.resize(size, Image.Resampling.NEAREST))
        return np.stack([labels == value for value in values]).astype(np.uint8)


def _check_labels(name: str, image: Image.Image, values: Sequence[int]) -> None:
    is_byte = image.mode in ("L", "P")
    counts = np.array(image.histogram()) if is_byte else np.bincount(np.asarray(image).ravel())
    other = [value for value in np.flatnonzero(counts).tolist() if value not in (0, *values)]
    if other:
        raise RejectedError(
            f"{name}: expected the label values {', '.join(map(str, sorted((0, *values))))}, found "
            f"{int(counts[other].sum())} pixels of others ({', '.join(str(v) for v in other[:4])}"
            f"{', ...' if len(other) > 4 else ''}); name them in the file of the classes"
        )


@contextmanager
def _decode_errors(name: str, content: bytes) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RejectedError:
        raise
    except UnidentifiedImageError:
        found = _describe_format(content)
        raise RejectedError(f"{name}: expected an image, found {found}") from None
    except Image.DecompressionBombError as error:
        raise RejectedError(f"{name}: too large for a photograph ({error})") from None
    except Exception as error:  # damage surfaces anywhere in a decoder, also as MemoryError
        reason = str(error) or type(error).__name__
        raise RejectedError(f"{name}: damaged image ({reason})") from None


def _describe_format(content: bytes) -> str:
    """What the content of a file is that Pillow does not open here."""
    if not content:
        return "an empty file"
    for name, start in _OTHER_FORMATS:
        if re.match(start, content[:1024], re.DOTALL):
            return f"{name}; convert it to {', '.join(PILLOW_FORMATS[:-1])} or {PILLOW_FORMATS[-1]}"
    return f"{len(content)} bytes of another format"


def count_scans(content: bytes) -> int:
    """The scans of a JPEG, by its markers as libjpeg reads them; nothing is decoded."""
    scans, position = 0, 0
    while found := _JPEG_MARKER.search(content, position):
        marker, position = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            break
        if marker not in _MARKERS_WITHOUT_LENGTH:
            position += max(2, int.from_bytes(content[position : position + 2], "big"))
        scans += marker == _START_OF_SCAN
    return scans


def _open_file(name: str, content: bytes) -> ImageFile.ImageFile:
    """Reads the file's header; the pixels are decoded on use."""
    image = Image.open(io.BytesIO(content), formats=PILLOW_FORMATS)
    _check_num_pixels(name, image.size)
    if image.format in ("JPEG", "MPO"):
        if (scans := count_scans(content)) > MAX_SCANS:
            raise RejectedError(
                f"{name}: expected a JPEG of at most {MAX_SCANS} scans, found {scans}; encode it "
                "again"
            )
        # One block: in the default blocks of 64 KiB, an image of 2 MB takes a quarter longer.
        image.decodermaxblock = max(image.decodermaxblock, len(content))
    return image


def _open_image(name: str, content: bytes) -> Image.Image:
    if is_dicom(content):
        check_size(name, read_dicom_size(name, content))
        return decode_dicom(name, content)
    image = _open_file(name, content)
    check_size(name, image.size)
    return image


def check_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """The size (width, height); raises RejectedError if it is out of range."""
    short, long = sorted(size)
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise RejectedError(
            f"{name}: expected sides of at least {MIN_SIDE} pixels and an aspect ratio of at most "
            f"{MAX_ASPECT}, found {size[0]} x {size[1]}"
        )
    _check_num_pixels(name, size)
    return size


def _check_num_pixels(name: str, size: tuple[int, int]) -> None:
    if (pixels := size[0] * size[1]) > MAX_PIXELS:
        raise RejectedError(
            f"{name}: too large for a photograph ({pixels} pixels; expected at most {MAX_PIXELS})"
        )


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise RejectedError(
            f"{name}: expected 8 or 16 bits per channel, found 32 (mode {image.mode})"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow assumes Adobe's inverted CMYK
    elif image.has_transparency_data and any(image.convert("RGBA").histogram()[3 * 256 : -1]):
        raise RejectedError(f"{name}: expected an opaque image, found transparent pixels")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _open_mask(name: str, content: bytes, size: tuple[int, int]) -> Image.Image:
    pixels = decode_black_and_white(content, MAX_PIXELS)
    image = _open_file(name, content) if pixels is None else Image.fromarray(pixels)
    if image.mode not in ("1", "L", "P"):
        raise RejectedError(f"{name}: expected a mask with one 8-bit channel, found {image.mode}")
    image = _to_upright_mask(name, image, size)
    if image.mode == "P":
        colours = image.convert("RGB").getcolors(2) or [(0, None)]
        if any(colour not in _BLACK_OR_WHITE for _, colour in colours):
            raise RejectedError(f"{name}: expected only black and white, found other colours")
    if image.mode != "L":
        image = image.convert("L")
    counts = image.histogram()
    if any(counts[1:255]):
        other = [value for value in range(1, 255) if counts[value]]
        raise RejectedError(
            f"{name}: expected only 0 and 255, found {sum(counts[1:255])} pixels of other values "
            f"({', '.join(str(v) for v in other[:4])}{', ...' if len(other) > 4 else ''})"
        )
    return image


def _to_upright_mask(name: str, mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The mask with its EXIF orientation applied; raises RejectedError if its size is another."""
    mask = _apply_orientation(mask, _read_orientation(mask))
    if mask.size != size:
        raise RejectedError(
            f"{name}: expected the image's {size[0]} x {size[1]} pixels, "
            f"found {mask.size[0]} x {mask.size[1]}"
        )
    return mask


def _read_orientation(image: Image.Image) -> int:
    """The EXIF orientation: 1 for upright."""
    if image.format == "TIFF":
        image.load()  # Pillow applies the orientation of a TIFF itself, and drops the tag
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation


def _apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    transpose = _EXIF_TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)

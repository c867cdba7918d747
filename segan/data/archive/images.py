"""Images and masks as files: decoding at the least cost, and what is refused by name.

Sizes are (width, height) in pixels. Whatever stands in a file, what leaves this module is a picture
or a RejectedError.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageFile, UnidentifiedImageError

from segan.errors import SeganError

# Not what else Pillow opens: for PostScript it would start a program.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
MAX_PIXELS = 80_000_000  # the archive's largest image has 30 million
MIN_SIDE = 16
MAX_ASPECT = 10

# A JPEG is decoded at 1/2, 1/4 or 1/8, without the detail that the frame cannot show, as long as
# this many times the frame's sides are left. On originals of 5 and 6 megapixels that is 1/8: it
# takes a seventh less time than 1/4 and a third less than 1/2, and its frame is 0.3 of 255 in the
# mean and 5 at most from the whole image's. With no pixels to spare that is 0.7, and 33 in places.
DRAFT_OVERSAMPLING = 1.5

_EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BLACK_OR_WHITE = ((0, 0, 0), (255, 255, 255))


class RejectedError(SeganError):
    """One image or mask that cannot be used; the reason is for the table of rejects."""


def decode_image(name: str, content: bytes) -> Image.Image:
    """An image, whole, upright and in RGB.

    Raises:
        RejectedError: it is damaged, no opaque picture of 8 or 16 bits, or of no photograph's size.
    """
    with _decode_errors(name, content):
        image = _open_image(name, content)
        turn = _exif_transpose(image)
        return _apply_transpose(_to_rgb(name, image), turn)


def decode_frame(
    name: str, content: bytes, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as a frame of `size`, resized bilinear with antialiasing.

    Returns:
        The frame, uint8 [H, W, 3], and the upright image's own size.

    Raises:
        RejectedError: as `decode_image`.
    """
    with _decode_errors(name, content):
        image = _open_image(name, content)
        turn = _exif_transpose(image)
        original, lying = _transposed_size(image.size, turn), _transposed_size(size, turn)
        drafted = image.draft(
            None, (int(lying[0] * DRAFT_OVERSAMPLING), int(lying[1] * DRAFT_OVERSAMPLING))
        )
        box = drafted[1] if drafted else None
        frame = _to_rgb(name, image).resize(lying, Image.Resampling.BILINEAR, box)
        return np.asarray(_apply_transpose(frame, turn)), original


def decode_mask(name: str, content: bytes, size: tuple[int, int]) -> np.ndarray:
    """A mask, uint8 [H, W] of 0 and 255, checked against its upright image's size.

    Raises:
        RejectedError: it is damaged, of another size or mode, or has other values.
    """
    with _decode_errors(name, content):
        return np.asarray(_open_mask(name, content, size))


def decode_mask_frame(
    name: str, content: bytes, original_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """A mask's nearest pixels as uint8 [H, W] of 0 and 1, for a frame of `size`.

    Raises:
        RejectedError: as `decode_mask`, whose `size` is here `original_size`.
    """
    with _decode_errors(name, content):
        mask = _open_mask(name, content, original_size).resize(size, Image.Resampling.NEAREST)
        return np.asarray(mask) & 1  # of 255, too, that is 1


@contextmanager
def _decode_errors(name: str, content: bytes) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except RejectedError:
        raise
    except UnidentifiedImageError:
        found = "an empty file" if not content else f"{len(content)} bytes that are none"
        raise RejectedError(f"{name}: expected an image, found {found}") from None
    except Image.DecompressionBombError as error:
        raise RejectedError(f"{name}: too large to be a photograph ({error})") from None
    except Exception as error:  # damage surfaces wherever a decoder stumbles, MemoryError included
        reason = str(error) or type(error).__name__
        raise RejectedError(f"{name}: not a whole image ({reason})") from None


def _open_file(name: str, content: bytes) -> ImageFile.ImageFile:
    """The file's header; its pixels are decoded when they are used."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    pixels = image.size[0] * image.size[1]
    if pixels > MAX_PIXELS:
        raise RejectedError(
            f"{name}: too large to be a photograph ({pixels} pixels, at most {MAX_PIXELS} are read)"
        )
    if image.format in ("JPEG", "MPO"):
        # All of it at once: handed over by 64 KiB, 2 MB whole would take a quarter longer.
        image.decodermaxblock = max(image.decodermaxblock, len(content))
    return image


def _open_image(name: str, content: bytes) -> ImageFile.ImageFile:
    image = _open_file(name, content)
    short, long = sorted(image.size)
    if short < MIN_SIDE or long > MAX_ASPECT * short:
        raise RejectedError(
            f"{name}: expected sides of {MIN_SIDE} pixels or more, at most {MAX_ASPECT} to 1, "
            f"found {image.size[0]} x {image.size[1]}"
        )
    return image


def _to_rgb(name: str, image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise RejectedError(
            f"{name}: expected 8 or 16 bits a channel, found 32 (mode {image.mode})"
        )
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        image = ImageChops.invert(image)  # Pillow takes every one for Adobe's, who store it inverse
    elif image.has_transparency_data and any(image.convert("RGBA").histogram()[3 * 256 : -1]):
        raise RejectedError(f"{name}: expected an opaque image, found transparent pixels")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _open_mask(name: str, content: bytes, size: tuple[int, int]) -> Image.Image:
    image: Image.Image = _open_file(name, content)
    if image.mode not in ("1", "L", "P"):
        raise RejectedError(f"{name}: expected a mask with one 8-bit channel, found {image.mode}")
    image = _apply_transpose(image, _exif_transpose(image))
    if image.size != size:
        raise RejectedError(
            f"{name}: expected the image's {size[0]} x {size[1]} pixels, "
            f"found {image.size[0]} x {image.size[1]}"
        )
    if image.mode == "P":
        colours = image.convert("RGB").getcolors(2) or [(0, None)]
        if any(colour not in _BLACK_OR_WHITE for _, colour in colours):
            raise RejectedError(f"{name}: expected black and white alone, found other colours")
    if image.mode != "L":
        image = image.convert("L")
    counts = image.histogram()
    if any(counts[1:255]):
        other = [value for value in range(1, 255) if counts[value]]
        raise RejectedError(
            f"{name}: expected 0 and 255 alone, found {sum(counts[1:255])} pixels between "
            f"({', '.join(str(v) for v in other[:4])}{', ...' if len(other) > 4 else ''})"
        )
    return image


def _exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright, by its EXIF orientation."""
    if image.format == "TIFF":
        image.load()  # then Pillow has turned it, and the tag is gone
    return _EXIF_TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))


def _apply_transpose(image: Image.Image, transpose: Image.Transpose | None) -> Image.Image:
    return image if transpose is None else image.transpose(transpose)


def _transposed_size(size: tuple[int, int], transpose: Image.Transpose | None) -> tuple[int, int]:
    sideways = transpose in (
        _EXIF_TRANSPOSES[5],
        _EXIF_TRANSPOSES[6],
        _EXIF_TRANSPOSES[7],
        _EXIF_TRANSPOSES[8],
    )
    return (size[1], size[0]) if sideways else size

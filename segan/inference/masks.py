"""Writes masks, under the ISIC challenge's file names, and optional maps.

    <out>/ISIC_0000000_segmentation.png                  0 or 255
          probability/ISIC_0000000_probability.png       optional: the members' mean
          uncertainty/ISIC_0000000_uncertainty.png       optional: their standard deviation

Maps are 16-bit greyscale PNGs at the image's size; value / 65535 is the probability or its standard
deviation over the members.
"""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor

from segan import storage
from segan.data.archive import layouts
from segan.data.archive.images import EXTENSIONS
from segan.data.archive.reader import MASK_SUFFIX, read_image
from segan.errors import RejectedError, SeganError, StorageError
from segan.inference.frames import std_map
from segan.inference.pipeline import ImageSize, Row
from segan.inference.predictor import Predictor, resize_map
from segan.inference.region_stats import region_stats
from segan.storage.lease import no_fence
from segan.utils.text import escape_controls

logger = logging.getLogger(__name__)

PROBABILITY, UNCERTAINTY = "probability", "uncertainty"
MAP_SUFFIXES = (f"_{PROBABILITY}", f"_{UNCERTAINTY}")
# A longer name has no room for the suffix of the file that `storage.write_bytes` renames.
MAX_NAME_BYTES = 237
UINT16_MAX = 65535  # encodes 1.0 in a map's file


def find_images(uri: str, reject: Callable[[str], object] = logger.warning) -> list[str]:
    """The URIs of the images below `uri`, or `uri` itself if it is an image.

    Masks, maps, superpixels, hidden files and files of other kinds are skipped.

    Args:
        reject: called with a line for each image whose name cannot be used.

    Raises:
        SeganError: there are no images, or two of them would have the same mask name.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    if uri.lower().endswith(EXTENSIONS):
        if not storage.exists(uri):
            raise StorageError(f"{uri}: not found")
        return [storage.normalise(uri)]
    found = [file.name for file in storage.list_files(uri) if _is_image(file.name)]
    names = [name for name in found if not _name_error(name)]
    for name in found:
        if error := _name_error(name):
            reject(f"{uri}/{name}: {error}")
    if not found:
        raise SeganError(f"{uri}: no images found; expected files such as ISIC_0000000.jpg")
    masks: dict[str, str] = {}
    for name in names:
        other = masks.setdefault(mask_name(name), name)
        if other != name:
            raise SeganError(f"{uri}: {other} and {name} have the same mask name {mask_name(name)}")
    return [storage.join(storage.normalise(uri), name) for name in names]


def _is_image(name: str) -> bool:
    if not name.lower().endswith(EXTENSIONS) or layouts.is_hidden(name):
        return False
    return not (layouts.is_mask(name) or image_id(name).lower().endswith(MAP_SUFFIXES))


def _name_error(name: str) -> str:
    """Why no mask can be named after an image; "" if one can."""
    if "\\" in name or escape_controls(name) != name:
        return "the name contains a backslash or control characters; rename the file"
    size = len(mask_name(name).encode())
    if size > MAX_NAME_BYTES:
        return f"its mask's name has {size} bytes, expected at most {MAX_NAME_BYTES}; rename it"
    return ""


def image_id(image: str) -> str:
    return PurePosixPath(image).stem


def mask_name(image: str) -> str:
    return f"{image_id(image)}{MASK_SUFFIX}.png"


@dataclass(frozen=True)
class MaskWriter:
    """An image task that writes each image's mask, and its maps of `map_kinds`, below `out`.

    Items are URIs of images; rows have the fields of `segan.inference.predictions.PredictionRow`.
    """

    out: str
    map_kinds: tuple[str, ...] = ()  # PROBABILITY and UNCERTAINTY
    fence: Callable[[], None] = no_fence  # of the lease of `out`

    def file_names(self, image: str) -> list[str]:
        """The names below `out` of the files of an image; the mask is the last."""
        maps = [f"{kind}/{image_id(image)}_{kind}.png" for kind in self.map_kinds]
        return [*maps, mask_name(image)]

    def read(self, image: str) -> Image.Image:
        return read_image(image)

    def process(self, predictor: Predictor, image: str, maps: Tensor, size: ImageSize) -> Row:
        prediction = predictor.postprocess(maps, size)
        members = predictor.postprocess_members(maps, size) if len(predictor.members) > 1 else ()
        stats = region_stats(prediction, [member.mask for member in members])
        values = {
            PROBABILITY: lambda: prediction.probability,
            UNCERTAINTY: lambda: resize_map(std_map(maps), size),
        }
        *map_files, mask_file = self.file_names(image)
        self.fence()
        for kind, name in zip(self.map_kinds, map_files, strict=True):
            storage.write_bytes(storage.join(self.out, name), _encode_map(values[kind]()))
        png = encode_mask(prediction.mask)
        storage.write_bytes(storage.join(self.out, mask_file), png)
        file = {"id": image_id(image), "image": image, "mask": mask_file, "bytes": len(png)}
        return file | {"width": size[0], "height": size[1]} | dataclasses.asdict(stats)

    def on_error(self, image: str, error: RejectedError) -> Row:
        return {"id": image_id(image), "image": image, "error": str(error)}


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask, bool [H, W], as a PNG of 0 and 255."""
    return _encode_png(mask.astype(np.uint8) * 255)


def _encode_map(values: np.ndarray) -> bytes:
    return _encode_png((values * UINT16_MAX).round().astype(np.uint16))


def _encode_png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()

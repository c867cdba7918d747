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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from PIL import Image
from torch import Tensor

from segan import storage
from segan.data.archive.images import RejectedError
from segan.data.archive.reader import MASK_SUFFIX, read_image
from segan.errors import SeganError, StorageError
from segan.inference.frames import std_map
from segan.inference.pipeline import ImageSize, Row
from segan.inference.predictor import Predictor, resize_map
from segan.inference.region_stats import region_stats
from segan.storage.lease import no_fence

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
PROBABILITY, UNCERTAINTY = "probability", "uncertainty"
EXCLUDED_SUFFIXES = (MASK_SUFFIX, "_superpixels", f"_{PROBABILITY}", f"_{UNCERTAINTY}")
UINT16_MAX = 65535  # encodes 1.0 in a map's file


def find_images(uri: str) -> list[str]:
    """The URIs of the images below `uri`, or `uri` itself if it is an image.

    Masks, maps, superpixels and files of other kinds are skipped.

    Raises:
        SeganError: there are no images, or two of them would have the same mask name.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    if uri.lower().endswith(IMAGE_EXTENSIONS):
        if not storage.exists(uri):
            raise StorageError(f"{uri}: not found")
        return [storage.normalise(uri)]
    names = [
        file.name
        for file in storage.list_files(uri)
        if file.name.lower().endswith(IMAGE_EXTENSIONS)
        and not image_id(file.name).endswith(EXCLUDED_SUFFIXES)
    ]
    if not names:
        raise SeganError(f"{uri}: no images found; expected files such as ISIC_0000000.jpg")
    masks: dict[str, str] = {}
    for name in names:
        other = masks.setdefault(mask_name(name), name)
        if other != name:
            raise SeganError(f"{uri}: {other} and {name} have the same mask name {mask_name(name)}")
    return [storage.join(storage.normalise(uri), name) for name in names]


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

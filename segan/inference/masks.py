"""Masks and maps as files; masks in the challenge's names: ISIC_0000000_segmentation.png, 0 or 255.

    <out>/ISIC_0000000_segmentation.png
          probability/ISIC_0000000_probability.png       where asked for
          disagreement/ISIC_0000000_disagreement.png     where asked for

Maps are grey PNG of 16 bits at the image's size, value / 65535 in [0, 1]: the mean of the members'
probabilities, and the distance of the greatest of them from the least.
"""

from __future__ import annotations

import dataclasses
import io
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

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
PROBABILITY, UNCERTAINTY = "probability", "uncertainty"
EXCLUDED_SUFFIXES = (MASK_SUFFIX, "_superpixels", f"_{PROBABILITY}", f"_{UNCERTAINTY}")
UINT16_MAX = 65535  # what 1 is in a map's file


def find_images(uri: str) -> list[str]:
    """The URIs of the images below `uri`, or `uri` itself where it is one.

    Masks, maps, superpixels and files of other kinds are passed over.

    Raises:
        SeganError: there is none, or two of them would share one mask's name.
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
            raise SeganError(f"{uri}: {other} and {name} would both become {mask_name(name)}")
    return [storage.join(storage.normalise(uri), name) for name in names]


def image_id(image: str) -> str:
    return PurePosixPath(image).stem


def mask_name(image: str) -> str:
    return f"{image_id(image)}{MASK_SUFFIX}.png"


@dataclass(frozen=True)
class MaskWriter:
    """Work for `segan.inference.pipeline`: each image's mask, and the maps asked for, below `out`.

    An item is an image's URI. A row says what `segan.inference.predictions.Predicted` does.
    """

    out: str
    map_kinds: tuple[str, ...] = ()  # of PROBABILITY and DISAGREEMENT

    def file_names(self, image: str) -> list[str]:
        """The names below `out` of what is written of an image, its mask's last."""
        named = [f"{kind}/{image_id(image)}_{kind}.png" for kind in self.map_kinds]
        return [*named, mask_name(image)]

    def read(self, image: str) -> Image.Image:
        return read_image(image)

    def process(self, predictor: Predictor, image: str, maps: Tensor, size: ImageSize) -> Row:
        whole = predictor.postprocess(maps, size)
        alone = predictor.postprocess_members(maps, size) if len(predictor.members) > 1 else ()
        found = region_stats(whole, [member.mask for member in alone])
        content = {
            PROBABILITY: lambda: _encode_map(whole.probability),
            UNCERTAINTY: lambda: _encode_map(resize_map(std_map(maps), size)),
        }
        *beside, mask = self.file_names(image)
        for kind, name in zip(self.map_kinds, beside, strict=True):
            storage.write_bytes(storage.join(self.out, name), content[kind]())
        png = encode_mask(whole.mask)
        storage.write_bytes(storage.join(self.out, mask), png)
        place = {"id": image_id(image), "image": image, "mask": mask, "bytes": len(png)}
        return place | {"width": size[0], "height": size[1]} | dataclasses.asdict(found)

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

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
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from segan import storage
from segan.data.archive import MASK_SUFFIX, read_image
from segan.data.images import RejectedError
from segan.errors import SeganError, StorageError
from segan.inference.figures import figures
from segan.inference.pipeline import Row, Size
from segan.inference.predictor import Predictor

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
PROBABILITY, DISAGREEMENT = "probability", "disagreement"
NO_IMAGES = (MASK_SUFFIX, "_superpixels", f"_{PROBABILITY}", f"_{DISAGREEMENT}")
FULL = 65535  # what 1 is in a map's file


def find_images(uri: str) -> list[str]:
    """The URIs of the images below `uri`, or `uri` itself where it is one.

    Masks, maps, superpixels and files of other kinds are passed over.

    Raises:
        SeganError: there is none, or two of them would share one mask's name.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    if uri.lower().endswith(IMAGE_ENDINGS):
        if not storage.exists(uri):
            raise StorageError(f"{uri}: not found")
        return [storage.normalise(uri)]
    names = [
        file.name
        for file in storage.list_files(uri)
        if file.name.lower().endswith(IMAGE_ENDINGS) and not image_id(file.name).endswith(NO_IMAGES)
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
class WriteMasks:
    """Work for `segan.inference.pipeline`: each image's mask, and the maps asked for, below `out`.

    An item is an image's URI. A row says what `segan.inference.predictions.Predicted` does.
    """

    out: str
    maps: tuple[str, ...] = ()  # of PROBABILITY and DISAGREEMENT

    def files(self, image: str) -> list[str]:
        """The names below `out` of what is written of an image, its mask's last."""
        named = [f"{kind}/{image_id(image)}_{kind}.png" for kind in self.maps]
        return [*named, mask_name(image)]

    def read(self, image: str) -> Image.Image:
        return read_image(image)

    def finish(self, predictor: Predictor, image: str, maps: Tensor, size: Size) -> Row:
        whole = predictor.finish(maps, size)
        alone = predictor.finish_members(maps, size) if len(predictor.members) > 1 else ()
        found = figures(whole, [member.mask for member in alone])
        content = {
            PROBABILITY: lambda: _sixteen_bits(whole.probability),
            DISAGREEMENT: lambda: _sixteen_bits(_spread(maps, size)),
        }
        *beside, mask = self.files(image)
        for kind, name in zip(self.maps, beside, strict=True):
            storage.write_bytes(storage.join(self.out, name), content[kind]())
        png = encode_mask(whole.mask)
        storage.write_bytes(storage.join(self.out, mask), png)
        place = {"id": image_id(image), "image": image, "mask": mask, "bytes": len(png)}
        return place | {"width": size[0], "height": size[1]} | dataclasses.asdict(found)

    def reject(self, image: str, error: RejectedError) -> Row:
        return {"id": image_id(image), "image": image, "reject": str(error)}


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask, bool [H, W], as a PNG of 0 and 255."""
    return _png(mask.astype(np.uint8) * 255)


def _spread(maps: Tensor, size: Size) -> np.ndarray:
    """Greatest less least probability among members, float32 [height, width]."""
    width, height = size
    full = F.interpolate(maps[None], (height, width), mode="bilinear", align_corners=False)[0]
    return (full.amax(0) - full.amin(0)).numpy()


def _sixteen_bits(values: np.ndarray) -> bytes:
    return _png((values * FULL).round().astype(np.uint16))


def _png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()

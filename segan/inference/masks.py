"""Writes masks, under the ISIC challenge's file names, and optional maps.

    <out>/ISIC_0000000_segmentation.png                  0 or 255
          probability/ISIC_0000000_probability.png       optional: the members' mean
          uncertainty/ISIC_0000000_uncertainty.png       optional: their standard deviation

Of a model with several classes, each class has the same in a folder of its name:

    <out>/globules/ISIC_0000000_segmentation.png
          probability/globules/ISIC_0000000_probability.png

or, instead of the masks, a label image has the number of a class in each pixel, from 1 in the order
of the classes, or 0:

    <out>/ISIC_0000000_labels.png

Maps are 16-bit greyscale PNGs at the image's size; value / 65535 is the probability or its standard
deviation over the members.
"""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Callable, Sequence
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
from segan.inference.predictor import Prediction, Predictor, resize_maps
from segan.inference.region_stats import region_stats
from segan.storage.lease import no_fence
from segan.utils.labels import LESION
from segan.utils.text import escape_controls

logger = logging.getLogger(__name__)

PROBABILITY, UNCERTAINTY = "probability", "uncertainty"
LABELS_SUFFIX = "_labels"
WRITTEN_SUFFIXES = (f"_{PROBABILITY}", f"_{UNCERTAINTY}", LABELS_SUFFIX)
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
    return not (layouts.is_mask(name) or image_id(name).lower().endswith(WRITTEN_SUFFIXES))


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
    """An image task that writes each image's masks, and its maps of `map_kinds`, below `out`.

    Items are URIs of images. A row has the fields of `segan.inference.predictions.PredictionRow`;
    of several classes it has `id`, `image`, and `classes`, a list of such rows.

    Attributes:
        map_kinds: PROBABILITY and UNCERTAINTY.
        fence: of the lease of `out`.
        classes: of the model.
        label_image: writes a label image instead of a mask for each class.
    """

    out: str
    map_kinds: tuple[str, ...] = ()
    fence: Callable[[], None] = no_fence
    classes: tuple[str, ...] = (LESION,)
    label_image: bool = False

    def mask_files(self, image: str) -> list[str]:
        """The names below `out` of the masks of an image, one for each class."""
        if self.label_image:
            return [f"{image_id(image)}{LABELS_SUFFIX}.png"] * len(self.classes)
        return [f"{folder}{mask_name(image)}" for folder in self._class_folders()]

    def file_names(self, image: str) -> list[str]:
        """The names below `out` of all files of an image; masks are the last."""
        maps = [name for kind in self.map_kinds for name in self._map_files(image, kind)]
        return [*maps, *dict.fromkeys(self.mask_files(image))]

    def _map_files(self, image: str, kind: str) -> list[str]:
        name = f"{image_id(image)}_{kind}.png"
        return [f"{kind}/{folder}{name}" for folder in self._class_folders()]

    def _class_folders(self) -> list[str]:
        return [f"{name}/" for name in self.classes] if len(self.classes) > 1 else [""]

    def read(self, image: str) -> Image.Image:
        return read_image(image)

    def process(self, predictor: Predictor, image: str, maps: Tensor, size: ImageSize) -> Row:
        prediction = predictor.postprocess(maps, size)
        self.fence()
        for kind in self.map_kinds:
            values = prediction.probability.reshape(-1, *size[::-1])
            if kind == UNCERTAINTY:
                values = resize_maps(std_map(maps), size)
            for name, one in zip(self._map_files(image, kind), values, strict=True):
                storage.write_bytes(storage.join(self.out, name), _encode_map(one))
        rows = self._region_rows(predictor, prediction, maps, size)
        numbers = self._write_masks(predictor, image, prediction)
        about = {"id": image_id(image), "image": image}
        for row, name, number in zip(rows, self.mask_files(image), numbers, strict=True):
            row |= about | {"mask": name, "bytes": number, "width": size[0], "height": size[1]}
        return rows[0] if len(rows) == 1 else about | {"classes": rows}

    def _region_rows(
        self, predictor: Predictor, prediction: Prediction, maps: Tensor, size: ImageSize
    ) -> list[Row]:
        """The statistics of each class's mask."""
        members, shape = [], (len(self.classes), *prediction.mask.shape[-2:])
        if len(predictor.members) > 1:
            found = predictor.postprocess_members(maps, size)
            members = [member.mask.reshape(shape) for member in found]
        rows = []
        for i, (name, one) in enumerate(prediction.by_class().items()):
            stats = region_stats(one, [masks[i] for masks in members])
            label = {"class_name": name} if len(self.classes) > 1 else {}
            rows.append(dataclasses.asdict(stats) | label)
        return rows

    def _write_masks(self, predictor: Predictor, image: str, prediction: Prediction) -> list[int]:
        """Writes the masks; returns the number of bytes of each class's file."""
        if self.label_image:
            contents = [_encode_png(to_label_image(prediction, predictor.thresholds))]
        else:
            contents = [encode_mask(one.mask) for one in prediction.by_class().values()]
        names = dict.fromkeys(self.mask_files(image))
        for name, content in zip(names, contents, strict=True):
            storage.write_bytes(storage.join(self.out, name), content)
        sizes = [len(content) for content in contents]
        return sizes * len(self.classes) if self.label_image else sizes

    def on_error(self, image: str, error: RejectedError) -> Row:
        return {"id": image_id(image), "image": image, "error": str(error)}


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask, bool [H, W], as a PNG of 0 and 255."""
    return _encode_png(mask.astype(np.uint8) * 255)


def to_label_image(prediction: Prediction, thresholds: Sequence[float]) -> np.ndarray:
    """The number of a class in each pixel, uint8 [H, W]: from 1 in the order of the classes, or 0.

    Where masks overlap, it is the class whose probability is furthest above its threshold, as a
    fraction of the way from the threshold to 1; the first of equal ones.
    """
    shape = (len(thresholds), *prediction.mask.shape[-2:])
    above = np.asarray(thresholds, np.float32)[:, None, None]
    mask = prediction.mask.reshape(shape)
    margin = (prediction.probability.reshape(shape) - above) / np.maximum(1 - above, 1e-6)
    labels = np.where(mask, margin, -1).argmax(0) + 1
    return np.where(mask.any(0), labels, 0).astype(np.uint8)


def _encode_map(values: np.ndarray) -> bytes:
    return _encode_png((values * UINT16_MAX).round().astype(np.uint16))


def _encode_png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()

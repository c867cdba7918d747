"""Masks as files, in the challenge's names: ISIC_0000000_segmentation.png, 0 or 255."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from segan import storage
from segan.data.archive import MASK_SUFFIX, RejectedError, read_image
from segan.errors import SeganError
from segan.inference.predictor import Predictor

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def find_images(uri: str) -> list[str]:
    """The URIs of the images below `uri`, or `uri` itself where it is one.

    Masks, superpixels and files of other kinds are passed over.

    Raises:
        SeganError: there is none, or two of them would share one mask's name.
        StorageError: it cannot be reached.
    """
    storage.check_access(uri)
    if uri.lower().endswith(IMAGE_ENDINGS):
        return [storage.normalise(uri)]
    names = [
        file.name
        for file in storage.list_files(uri)
        if file.name.lower().endswith(IMAGE_ENDINGS)
        and not PurePosixPath(file.name).stem.endswith((MASK_SUFFIX, "_superpixels"))
    ]
    if not names:
        raise SeganError(f"{uri}: no images found; expected files such as ISIC_0000000.jpg")
    masks: dict[str, str] = {}
    for name in names:
        other = masks.setdefault(mask_name(name), name)
        if other != name:
            raise SeganError(f"{uri}: {other} and {name} would both become {mask_name(name)}")
    return [storage.join(storage.normalise(uri), name) for name in names]


def mask_name(image: str) -> str:
    return f"{PurePosixPath(image).stem}{MASK_SUFFIX}.png"


def write_mask(predictor: Predictor, image: str, out: str) -> dict[str, Any]:
    """Segments one image and writes its mask below `out`, at the image's own size.

    Returns:
        `id`, `mask` (its URI), `lesion` (share of the pixels) and `reject` (empty, or why the
        image could not be read).
    """
    name = mask_name(image)
    row: dict[str, Any] = {"id": PurePosixPath(image).stem, "mask": "", "lesion": 0.0, "reject": ""}
    try:
        mask = predictor(read_image(image)).mask
    except RejectedError as error:
        return row | {"reject": str(error)}
    sink = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(sink, "PNG")
    uri = storage.join(out, name)
    storage.write_bytes(uri, sink.getvalue())
    return row | {"mask": uri, "lesion": float(mask.mean())}

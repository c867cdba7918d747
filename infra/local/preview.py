"""Draws masks as text, two pixels to a character."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from segan import storage
from segan.evaluation.metrics import confusion

Mask = np.ndarray  # bool [H, W]
COLUMNS = 24  # of each mask, characters: three fit a terminal of 80
# By (upper pixel, lower pixel); the second row for terminals that show ASCII only.
BLOCKS = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
ASCII = {(False, False): ".", (True, False): "#", (False, True): "#", (True, True): "#"}


def draw_masks(masks: Mapping[str, Mask], encoding: str, columns: int = COLUMNS) -> str:
    """Masks of one size side by side, each below its title in a frame.

    Args:
        encoding: of the terminal; one that has no block characters gets ASCII.
        columns: of each mask.
    """
    symbols = BLOCKS if _has_blocks(encoding) else ASCII
    drawn = [
        [title.ljust(columns), *_draw(mask, columns, symbols)] for title, mask in masks.items()
    ]
    return "\n".join(" ".join(f"|{line}|" for line in lines) for lines in zip(*drawn, strict=True))


def read_mask(uri: str) -> Mask:
    """The mask of an image file: which pixels are above half."""
    with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
        return np.asarray(image.convert("L")) > 127


def jaccard(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks; 1 if both are empty."""
    return float(confusion(first, second).scores()["jaccard"])


def _draw(mask: Mask, columns: int, symbols: Mapping[tuple[bool, bool], str]) -> list[str]:
    height, width = mask.shape
    # A character is about twice as high as wide, so that two pixels in it are square.
    rows = max(1, round(columns * height / width / 2))
    size = columns, 2 * rows
    cover = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    pixels = np.asarray(cover) >= 128
    return [
        "".join(symbols[bool(up), bool(down)] for up, down in zip(upper, lower, strict=True))
        for upper, lower in zip(pixels[::2], pixels[1::2], strict=True)
    ]


def _has_blocks(encoding: str) -> bool:
    try:
        "".join(BLOCKS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True

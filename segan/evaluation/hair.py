"""Estimate of the hair that covers the skin in a frame.

Hair is dark, thin and long. The black-hat transform (morphological closing minus the image) is high
where the image is dark and thin, as in DullRazor (Lee, Ng, Gallagher, Coldman, McLean, "DullRazor:
a software approach to hair removal from images", 1997). An opening by lines keeps what is long.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

CLOSING_SIZE = 7  # pixels: side of the closing's square, wider than a hair
BLACK_HAT_THRESHOLD = 14  # of 255 grey levels
LINE_LENGTH = 13  # pixels; odd
# Steps (down, right), in half pixels, of lines at 0, 22.5, 45, ... degrees.
_DIRECTIONS = ((0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (2, -1), (2, -2), (1, -2))


def hair_fraction(image: np.ndarray, lesion: np.ndarray) -> float:
    """Fraction, 0 to 1, of the pixels outside the lesion that look like hair.

    Pixels inside the lesion are left out because a lesion's own pattern can be of dark lines.
    Returns 0 if the lesion fills the frame.

    Args:
        image: uint8 [H, W, 3], sRGB.
        lesion: bool [H, W].
    """
    outside = ~lesion
    if not outside.any():
        return 0.0
    return float(find_hair(image)[outside].mean())


def find_hair(image: np.ndarray) -> np.ndarray:
    """Mask, bool [H, W], of the pixels that are dark, thin and part of a line.

    Args:
        image: uint8 [H, W, 3], sRGB.
    """
    grey = np.asarray(Image.fromarray(image).convert("L"))
    black_hat = ndimage.black_tophat(grey, CLOSING_SIZE, mode="nearest")
    dark = black_hat >= BLACK_HAT_THRESHOLD
    found: np.ndarray = np.logical_or.reduce(
        [ndimage.binary_opening(dark, _line(*direction)) for direction in _DIRECTIONS]
    )
    return found


def _line(down: int, right: int) -> np.ndarray:
    """A line through the centre as a structuring element, bool [LINE_LENGTH, LINE_LENGTH]."""
    centre = LINE_LENGTH // 2
    line = np.zeros((LINE_LENGTH, LINE_LENGTH), bool)
    for i in range(-centre, centre + 1):
        line[centre + round(i * down / 2), centre + round(i * right / 2)] = True
    return line

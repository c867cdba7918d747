"""How much hair lies over the skin, estimated from a frame.

Hair is dark, thin and long. Dark and thin is what a morphological closing fills in: the black-hat
transform, the closing less the image, is high there and nowhere else, as in DullRazor (Lee, Ng,
Gallagher, Coldman, McLean, "DullRazor: a software approach to hair removal from images", 1997).
Long is what remains of that after an opening by lines.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

CLOSING_SIZE = 7  # pixels: side of the closing's square, which fills what is narrower; odd
BLACK_HAT_THRESHOLD = 14  # of 255, by which hair is darker than the skin beside it
LINE_LENGTH = 13  # pixels: length of the opening's lines; odd
# Steps (down, right) of lines at 0, 22.5, 45, ... degrees, two pixels where one would be 1 x 0.5.
_DIRECTIONS = ((0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (2, -1), (2, -2), (1, -2))


def hair_fraction(image: np.ndarray, lesion: np.ndarray) -> float:
    """The share, 0 to 1, of the pixels outside the lesion that look like hair.

    Inside a lesion dark lines can be its own pattern, so it is left out; 0 where all is lesion.

    Args:
        image: uint8 [H, W, 3], sRGB.
        lesion: bool [H, W].
    """
    outside = ~lesion
    if not outside.any():
        return 0.0
    return float(find_hair(image)[outside].mean())


def find_hair(image: np.ndarray) -> np.ndarray:
    """The pixels that are dark, thin and part of something long, bool [H, W]."""
    grey = Image.fromarray(image).convert("L")
    closed = grey.filter(ImageFilter.MaxFilter(CLOSING_SIZE)).filter(
        ImageFilter.MinFilter(CLOSING_SIZE)
    )
    black_hat = np.asarray(closed, np.int16) - np.asarray(grey, np.int16)
    return _open_by_lines(black_hat >= BLACK_HAT_THRESHOLD)


def _open_by_lines(region: np.ndarray) -> np.ndarray:
    """What of a region, bool [H, W], is covered by lines of `LONG` pixels inside it."""
    covered = np.zeros_like(region)
    for direction in _DIRECTIONS:
        steps = [
            tuple(round(i * part / 2) for part in direction)
            for i in range(-(LINE_LENGTH // 2), LINE_LENGTH // 2 + 1)
        ]
        centres = np.logical_and.reduce([_shift(region, *step) for step in steps])
        covered |= np.logical_or.reduce([_shift(centres, -y, -x) for y, x in steps])
    return covered


def _shift(region: np.ndarray, down: int, right: int) -> np.ndarray:
    """Each pixel gets the value of the one so far down and right of it; beyond the edge is none."""
    height, width = region.shape
    reach = LINE_LENGTH // 2
    padded = np.pad(region, reach)
    return padded[reach + down : reach + down + height, reach + right : reach + right + width]

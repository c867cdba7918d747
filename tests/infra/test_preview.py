"""Masks as text: two pixels to a character, side by side below their titles."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.local.preview import draw_masks, jaccard, read_mask
from segan import storage

# Each pixel of the 4 x 4 pattern is a block of 2 x 2 pixels of the mask.
PATTERN = np.array([[1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
MASK = PATTERN.repeat(2, axis=0).repeat(2, axis=1)


def test_a_character_shows_an_upper_and_a_lower_pixel() -> None:
    # 4 columns of a square mask are 2 rows of characters: pixel rows 0 and 1, then 2 and 3.
    assert draw_masks({"a": MASK}, "utf-8", columns=4) == "|a   |\n|█ ▄▀|\n|▄▄  |"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "no-such-encoding"])
def test_a_terminal_without_blocks_gets_ascii(encoding: str) -> None:
    assert draw_masks({"a": MASK}, encoding, columns=4) == "|a   |\n|#.##|\n|##..|"


def test_masks_are_side_by_side() -> None:
    drawn = draw_masks({"first": MASK, "true": ~MASK}, "utf-8", columns=5).splitlines()
    assert drawn[0] == "|first| |true |"
    assert {len(line) for line in drawn} == {15}


def test_three_masks_fit_a_terminal_of_80_columns() -> None:
    masks = {"first, Jaccard 0.12": MASK, "ensemble, Jaccard 0.12": MASK, "true": MASK}
    assert {len(line) for line in draw_masks(masks, "utf-8").splitlines()} == {80}


def test_jaccard_is_intersection_over_union() -> None:
    # 2 pixels in both, 4 in either.
    first, second = np.array([[1, 1, 1, 0, 0]], bool), np.array([[0, 1, 1, 1, 0]], bool)
    assert jaccard(first, second) == 0.5
    assert jaccard(first, ~first) == 0
    assert jaccard(first & False, second & False) == 1


def test_a_mask_is_what_is_above_half(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 127, 128, 255]], np.uint8)).save(buffer, "PNG")
    storage.write_bytes(str(tmp_path / "mask.png"), buffer.getvalue())
    assert read_mask(str(tmp_path / "mask.png")).tolist() == [[False, False, True, True]]

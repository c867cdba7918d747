"""Hair detection on drawn lines."""

from __future__ import annotations

import numpy as np
import pytest

from segan.evaluation.hair import find_hair, hair_fraction

HEIGHT, WIDTH = 60, 80
SKIN, DARK = (210, 170, 150), (60, 40, 30)
NO_LESION = np.zeros((HEIGHT, WIDTH), bool)


def skin_image() -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), SKIN, np.uint8)


def line_image(down: float, right: float, length: int = 31) -> np.ndarray:
    """Skin with a line of one pixel's width through the centre."""
    image = skin_image()
    for i in range(-(length // 2), length // 2 + 1):
        image[HEIGHT // 2 + round(i * down), WIDTH // 2 + round(i * right)] = DARK
    return image


@pytest.mark.parametrize(
    "direction", [(0, 1), (1, 0), (0.7, 0.7), (0.7, -0.7), (0.5, 1), (-1, 0.5)]
)
def test_finds_lines(direction: tuple[float, float]) -> None:
    image = line_image(*direction)
    line = (image == DARK).all(2)
    found = find_hair(image)
    assert not (found & ~line).any()
    assert (found & line).sum() >= 0.8 * line.sum()


def test_fraction_is_of_the_pixels_outside_the_lesion() -> None:
    # A hair across the frame, 80 pixels, 30 of them over a lesion of 10 x 30 pixels:
    # 50 of 4800 - 300.
    image, lesion = skin_image(), NO_LESION.copy()
    image[30] = DARK
    lesion[25:35, 20:50] = True
    assert hair_fraction(image, NO_LESION) == pytest.approx(80 / 4800)
    assert hair_fraction(image, lesion) == pytest.approx(50 / 4500)
    assert hair_fraction(image, ~NO_LESION) == 0


def test_short_thick_and_light_lines_are_not_hair() -> None:
    short = line_image(0, 1, 9)
    thick = skin_image()
    thick[20:32] = DARK
    light = skin_image()
    light[30] = (255, 230, 220)
    for image in (skin_image(), short, thick, light):
        assert hair_fraction(image, NO_LESION) == 0

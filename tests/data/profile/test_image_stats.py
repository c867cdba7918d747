"""Image statistics: colours, lesions and skin by hand and on synthetic images."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor

from segan.data.profile import image_stats
from segan.data.records.format import Samples
from segan.data.synthetic import SKIN_TONES, generate_pair

H, W = 48, 64
SKIN = (200, 160, 130)


def uniform_image(
    colour: tuple[int, int, int] = SKIN, height: int = H, width: int = W
) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def empty_mask(height: int = H, width: int = W) -> np.ndarray:
    return np.zeros((height, width), bool)


def compute_row(image: np.ndarray, lesion: np.ndarray) -> dict:
    frames = Samples(["a"], image[None], lesion[None, None].astype(np.uint8))
    (row,) = image_stats.compute_stats(frames, [(640, 480)]).to_pylist()
    return row


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        # Primaries and greys of sRGB under D65, from colour calculators.
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        # 119 / 255 = 0.4667; ((0.4667 + 0.055) / 1.055) ** 2.4 = 0.1845; its cube root 0.5693;
        # 116 * 0.5693 - 16 = 50.03.
        ((119, 119, 119), (50.03, 0, 0)),
        # 10 / 255 / 12.92 = 0.003035, on the linear part of both curves: f = 0.003035 * 7.787 +
        # 0.1379 = 0.1616; 116 * 0.1616 - 16 = 2.74.
        ((10, 10, 10), (2.74, 0, 0)),
    ],
)
def test_known_colours(rgb: tuple[int, ...], expected: tuple[float, ...]) -> None:
    found = image_stats.rgb_to_lab(np.array([rgb], np.uint8))[0]
    np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize(
    ("lightness", "yellow", "angle"),
    [
        (70, 20, 45),  # 20 / 20
        (50, 15, 0),
        (30, 20, -45),
        (67.3205, 10, 60),  # tan 60 = 1.73205
        (70, 0, 90),
        (60, -10, 135),  # bluer than grey: beyond 90, not folded to -45
    ],
)
def test_the_typology_angle_by_hand(lightness: float, yellow: float, angle: float) -> None:
    found = image_stats.typology_angle(np.array([lightness]), np.array([yellow]))
    np.testing.assert_allclose(found, [angle], atol=1e-4)


@pytest.mark.parametrize(
    ("angle", "name"),
    [
        (89, "very light"),
        (55, "light"),
        (41.1, "light"),
        (41, "intermediate"),
        (28, "tan"),
        (10, "brown"),
        (-30, "dark"),
        (-89, "dark"),
        (math.nan, None),
    ],
)
def test_tone_categories(angle: float, name: str | None) -> None:
    assert image_stats.tone_category(angle) == name


def test_a_row_by_hand() -> None:
    image, lesion = uniform_image(), empty_mask()
    lesion[12:24, 16:32] = True  # 12 x 16 of 48 x 64 pixels: 192 / 3072 = 1 / 16
    image[12:24, 16:24] = (100, 50, 20)
    image[12:24, 24:32] = (60, 30, 0)
    row = compute_row(image, lesion)
    assert (row["id"], row["original_width"], row["original_height"]) == ("a", 640, 480)
    assert row["lesion_fraction"] == 1 / 16
    assert not row["touches_border"]
    assert row["lesion_colour"] == [80, 40, 10]
    assert row["skin_colour"] == list(SKIN)
    # Linear (0.5776, 0.3515, 0.2232), so Y = 0.3903 and Z = 0.2436 of white, with the cube roots
    # 0.7308 and 0.6245: L* = 68.77, b* = 21.26, arctan(18.77 / 21.26) = 41.44 degrees.
    assert row["ita"] == pytest.approx(41.44, abs=0.1)


@pytest.mark.parametrize(("y", "x"), [(0, 30), (H - 1, 30), (20, 0), (20, W - 1), (0, 0)])
def test_lesions_that_touch_the_border(y: int, x: int) -> None:
    lesion = empty_mask()
    lesion[y, x] = True
    assert compute_row(uniform_image(), lesion)["touches_border"]


@pytest.mark.parametrize(("y", "x"), [(1, 30), (H - 2, 30), (20, 1), (20, W - 2)])
def test_lesions_one_pixel_from_the_border(y: int, x: int) -> None:
    lesion = empty_mask()
    lesion[y, x] = True
    assert not compute_row(uniform_image(), lesion)["touches_border"]


def test_an_empty_mask_has_no_lesion_colour() -> None:
    row = compute_row(uniform_image(), empty_mask())
    assert (row["lesion_fraction"], row["lesion_colour"], row["touches_border"]) == (0, None, False)


def test_a_lesion_of_several_classes_is_their_union() -> None:
    masks = np.zeros((1, 2, H, W), np.uint8)
    masks[0, 0, :10] = 1
    masks[0, 1, 5:20] = 1
    (row,) = image_stats.compute_stats(
        Samples(["a"], uniform_image()[None], masks), [(1, 1)]
    ).to_pylist()
    assert row["lesion_fraction"] == pytest.approx(20 / 48)


def test_border_hair_reflection_and_lesion_are_not_skin() -> None:
    image, lesion = uniform_image(), empty_mask()
    image[:, :8] = 0  # a black frame
    image[40:] = 255  # a reflection
    image[20:22, 8:30] = (60, 50, 40)  # a hair, 34 in L* below the skin
    lesion[10:16, 40:50] = True
    image[lesion] = (120, 70, 40)
    # The margin is 48 / 16 = 3 pixels around the lesion.
    image[7:19, 37:53][~lesion[7:19, 37:53]] = (190, 150, 120)
    skin, tone = image_stats.find_skin(image, lesion)
    expected = (image == SKIN).all(-1)
    np.testing.assert_array_equal(skin, expected)
    assert tone == pytest.approx(41.44, abs=0.1)


@pytest.mark.parametrize(
    "image", [uniform_image((0, 0, 0)), uniform_image((255, 255, 255))], ids=["black", "blown out"]
)
def test_image_without_skin(image: np.ndarray) -> None:
    row = compute_row(image, empty_mask())
    assert row["skin_colour"] is None
    assert math.isnan(row["ita"])


def test_lesion_that_fills_the_frame() -> None:
    assert compute_row(uniform_image(), ~empty_mask())["skin_colour"] is None


def test_blue_light_has_no_angle() -> None:
    row = compute_row(uniform_image((150, 170, 210)), empty_mask())
    assert row["skin_colour"] == [150, 170, 210]
    assert math.isnan(row["ita"])


def test_angles_of_synthetic_skin_tones_are_ordered() -> None:
    """Fitzpatrick types I to VI: each angle is smaller than the one before."""
    rgb = (ImageColor.getrgb(tone) for tone in SKIN_TONES)
    angles = [compute_row(uniform_image((r, g, b)), empty_mask())["ita"] for r, g, b in rgb]
    assert angles == sorted(angles, reverse=True)
    assert len(set(angles)) == len(angles)


@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(16, 70), st.integers(16, 70)),
)
def test_stats_of_synthetic_images_are_in_range(seed: int, size: tuple[int, int]) -> None:
    image, mask = generate_pair(seed, 0, size)
    row = compute_row(image, mask > 0)
    assert 0 <= row["lesion_fraction"] <= 1
    assert math.isnan(row["ita"]) or -90 < row["ita"] < 90
    assert len(row["hash"]) == 32
    assert compute_row(image, mask > 0)["hash"] == row["hash"]

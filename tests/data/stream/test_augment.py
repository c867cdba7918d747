"""Augmentation: crops, flips and colour jitter by hand."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segan.config import AugmentConfig
from segan.data.stream.augment import (
    adjust_hue,
    augment,
    color_jitter,
    rgb_to_grayscale,
    sample_params,
)

NO_JITTER = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
NEUTRAL = 0.5  # the parameter that changes nothing
MAX_UNIFORM = 1 - 2.0**-53  # the largest parameter
HEIGHT, WIDTH = 70, 90
SEEDS = st.integers(0, 2**31)


def ids(count: int) -> list[str]:
    return [f"ISIC_{i:07d}" for i in range(count)]


def random_masks(seed: int, count: int, classes: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, classes, HEIGHT, WIDTH, generator=generator) > 0.5).byte()


def config_without_jitter(**options: float) -> AugmentConfig:
    return AugmentConfig(**{"crop": 64, **NO_JITTER, **options})


def config_with_crop(crop: int, **options: float) -> AugmentConfig:
    """Crops smaller than a network accepts, for tests by hand."""
    return AugmentConfig.model_construct(crop=crop, **NO_JITTER, **options)


def make_params(*first: float) -> Tensor:
    return torch.tensor([[*first, *[NEUTRAL] * (10 - len(first))]], dtype=torch.float64)


def coordinate_image(height: int, width: int) -> tuple[Tensor, Tensor]:
    """An image whose red and green are its row and column, and an empty mask."""
    image = torch.zeros(1, height, width, 3, dtype=torch.uint8)
    image[..., 0] = torch.arange(height)[:, None]
    image[..., 1] = torch.arange(width)[None, :]
    return image, torch.zeros(1, 1, height, width, dtype=torch.uint8)


def crop_corner(params: Tensor, crop: int, height: int, width: int) -> tuple[int, int]:
    image, mask = coordinate_image(height, width)
    cut, _ = augment(
        image, mask, params, config_with_crop(crop, flip_horizontal=0.0, flip_vertical=0.0)
    )
    assert cut.shape == (1, 3, crop, crop)
    row, column, _ = (cut[0, :, 0, 0] * 255).round().int().tolist()
    return row, column


@given(seed=SEEDS, epoch=st.integers(0, 999), classes=st.integers(1, 3))
@settings(max_examples=20)
def test_image_and_mask_are_transformed_alike(seed: int, epoch: int, classes: int) -> None:
    mask = random_masks(seed, 4, classes)
    image = (mask[:, :1] * 255).repeat(1, 3, 1, 1).permute(0, 2, 3, 1).contiguous()
    cut, moved = augment(
        image,
        mask,
        torch.from_numpy(sample_params(seed, [epoch] * 4, ids(4))),
        config_without_jitter(),
    )
    assert cut.shape == (4, 3, 64, 64)
    assert moved.shape == (4, classes, 64, 64)
    assert torch.equal(cut, moved[:, :1].repeat(1, 3, 1, 1))


@given(seed=SEEDS)
@settings(max_examples=20)
def test_images_stay_in_range_and_masks_binary(seed: int) -> None:
    rows = torch.from_numpy(sample_params(seed, [0] * 4, ids(4)))
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (4, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator)
    strong = AugmentConfig(crop=64, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5)
    cut, mask = augment(image, random_masks(seed, 4), rows, strong)
    assert (cut.dtype, mask.dtype) == (torch.float32, torch.float32)
    assert 0 <= cut.min() < cut.max() <= 1
    assert set(mask.unique().tolist()) == {0.0, 1.0}


@given(seed=SEEDS, epoch=st.integers(0, 999), order=st.permutations(range(5)))
@settings(max_examples=20)
def test_params_do_not_depend_on_the_batch(seed: int, epoch: int, order: list[int]) -> None:
    names = ids(5)
    together = sample_params(seed, [epoch] * 5, names)
    shuffled = sample_params(seed, [epoch] * 5, [names[i] for i in order])
    np.testing.assert_array_equal(shuffled, together[order])
    np.testing.assert_array_equal(sample_params(seed, [epoch], names[3:4])[0], together[3])
    fine = together[:, :8]  # angle and zoom have 2,048 values only
    assert len(np.unique(fine)) == fine.size
    for other in (
        sample_params(seed, [epoch + 1] * 5, names),
        sample_params(seed + 1, [epoch] * 5, names),
    ):
        assert not np.isin(other[:, :8], fine).any()


def test_params_of_a_batch_that_spans_two_epochs() -> None:
    both = sample_params(7, [2, 3], ["ISIC_0000001", "ISIC_0000001"])
    np.testing.assert_array_equal(both[:1], sample_params(7, [2], ["ISIC_0000001"]))
    np.testing.assert_array_equal(both[1:], sample_params(7, [3], ["ISIC_0000001"]))


def test_a_sample_is_augmented_as_if_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator)
    mask, rows = random_masks(0, 3), torch.from_numpy(sample_params(0, [0] * 3, ids(3)))
    together = augment(image, mask, rows, AugmentConfig(crop=64))
    for i in range(3):
        one = slice(i, i + 1)
        alone = augment(image[one], mask[one], rows[one], AugmentConfig(crop=64))
        torch.testing.assert_close(together[0][one], alone[0])
        assert torch.equal(together[1][one], alone[1])


def test_params_are_uniform_and_independent() -> None:
    rows = sample_params(0, [3] * 4000, ids(4000))
    assert rows.dtype == np.float64
    assert rows.shape == (4000, 10)
    assert rows.min() >= 0
    assert rows.max() < 1
    for column in rows.T:
        # 400 expected in each tenth, spread sqrt(4000 * 0.1 * 0.9) = 19.
        counts = np.histogram(column, bins=10, range=(0, 1))[0]
        assert np.abs(counts - 400).max() < 5 * 19
    between = np.corrcoef(rows.T) - np.eye(10)
    assert np.abs(between).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize(
    ("row", "column", "corner"),
    [
        # 5 - 3 + 1 = 3 possible rows and 7 - 3 + 1 = 5 columns.
        (0.0, 0.0, (0, 0)),
        (0.33, 0.19, (0, 0)),  # 0.99 and 0.95
        (0.34, 0.2, (1, 1)),  # 1.02 and 1
        (0.5, 0.5, (1, 2)),  # 1.5 and 2.5
        (0.67, 0.99, (2, 4)),  # 2.01 and 4.95
        (MAX_UNIFORM, MAX_UNIFORM, (2, 4)),
    ],
)
def test_crop_corner(row: float, column: float, corner: tuple[int, int]) -> None:
    assert crop_corner(make_params(row, column, NEUTRAL, NEUTRAL), 3, 5, 7) == corner


def test_crop_corners_are_uniform() -> None:
    # The paper's sizes: 135 - 128 + 1 = 8 rows and 180 - 128 + 1 = 53 columns.
    image, mask = (x.repeat(1060, *[1] * 3) for x in coordinate_image(135, 180))
    config = config_without_jitter(crop=128, flip_horizontal=0.0, flip_vertical=0.0)
    rows = torch.from_numpy(sample_params(0, [0] * 1060, ids(1060)))
    found = []
    for part in torch.arange(1060).split(106):
        cut, _ = augment(image[part], mask[part], rows[part], config)
        found.append((cut[:, :2, 0, 0] * 255).round().int())
    top, left = torch.cat(found).T
    # 132.5 expected of each row, spread sqrt(132.5 * 7/8) = 10.8; 20 of each column, spread 4.4.
    assert (torch.bincount(top) - 132.5).abs().max() < 5 * 10.8
    assert (torch.bincount(left) - 20).abs().max() < 5 * 4.4
    assert (len(torch.bincount(top)), len(torch.bincount(left))) == (8, 53)


def test_crop_of_the_frame_size() -> None:
    assert crop_corner(make_params(MAX_UNIFORM, MAX_UNIFORM, NEUTRAL, NEUTRAL), 3, 3, 3) == (0, 0)


def test_a_crop_larger_than_the_frame_is_refused() -> None:
    with pytest.raises(AssertionError, match="crop 4 does not fit a frame of 3 x 9"):
        crop_corner(make_params(0, 0), 4, 3, 9)


# Rotated and magnified


def turned(image: Tensor, mask: Tensor, angle: float, zoom: float) -> tuple[Tensor, Tensor]:
    """The only crop of a 4 x 4 frame, at the largest angle (degrees), made smallest by zoom."""
    config = config_with_crop(
        4, flip_horizontal=0.0, flip_vertical=0.0, rotation=angle, zoom=zoom, resize_probability=0.0
    )
    params = make_params()
    params[:, 8:] = 1.0
    return augment(image, mask, params, config)


def test_a_quarter_turn_moves_every_pixel() -> None:
    image, mask = coordinate_image(4, 4)
    mask[0, 0, 0, 1] = 1
    cut, moved = turned(image, mask, 90.0, 1.0)
    # Pixel (r, c) of the crop is (3 - c, r) of the frame.
    expected_rows = torch.tensor([[3.0, 2, 1, 0]] * 4)
    torch.testing.assert_close(cut[0, 0] * 255, expected_rows, atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[0, 1] * 255, torch.arange(4.0)[:, None].expand(4, 4))
    assert moved.nonzero().tolist() == [[0, 0, 1, 3]]


def test_a_zoom_of_two_reaches_half_a_frame_beyond_the_edges() -> None:
    """The pixels 1.5 apart from the centre, times two, are 3 apart: reflected into the frame."""
    image, mask = coordinate_image(4, 4)
    mask[0, 0, 3, :] = 1
    cut, moved = turned(image, mask, 0.0, 2.0)
    # Rows 1.5 - 3, 1.5 - 1, 1.5 + 1, 1.5 + 3; those beyond the edges at -0.5 and 3.5 come back.
    expected = torch.tensor([0.5, 0.5, 2.5, 2.5])[:, None].expand(4, 4)
    torch.testing.assert_close(cut[0, 0] * 255, expected, atol=1e-4, rtol=0)
    assert set(moved.unique().tolist()) <= {0.0, 1.0}


@given(SEEDS, st.integers(0, 300))
@settings(max_examples=20)
def test_without_an_angle_a_turned_crop_is_the_crop(seed: int, epoch: int) -> None:
    """Whatever the corner and the flips, so an angle and a zoom of nothing change nothing."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (4, HEIGHT, WIDTH, 3), generator=generator).byte()
    mask = random_masks(seed, 4, 2)
    params = torch.from_numpy(sample_params(seed, [epoch] * 4, ids(4)))
    cut, moved = augment(image, mask, params, config_without_jitter())
    almost = config_without_jitter(rotation=1e-9, zoom=1 + 1e-12)
    turned_cut, turned_mask = augment(image, mask, params, almost)
    torch.testing.assert_close(turned_cut, cut, atol=1e-4, rtol=0)
    assert torch.equal(turned_mask, moved)


def test_a_turned_crop_does_not_depend_on_its_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, HEIGHT, WIDTH, 3), generator=generator).byte()
    mask, rows = random_masks(0, 3), torch.from_numpy(sample_params(0, [0] * 3, ids(3)))
    config = AugmentConfig(crop=64, rotation=180, zoom=1.4)
    together = augment(image, mask, rows, config)
    for one in (slice(0, 1), slice(2, 3)):
        alone = augment(image[one], mask[one], rows[one], config)
        torch.testing.assert_close(together[0][one], alone[0])
        assert torch.equal(together[1][one], alone[1])


# Resized instead of cropped


def half_lesion(classes: int = 1) -> tuple[Tensor, Tensor]:
    """A frame whose left half is white and lesion."""
    mask = torch.zeros(1, classes, 64, 128, dtype=torch.uint8)
    mask[..., :64] = 1
    return (mask[:, :1] * 255).permute(0, 2, 3, 1).repeat(1, 1, 1, 3), mask


@pytest.mark.parametrize(
    ("column", "row", "white"),
    [
        (NEUTRAL, NEUTRAL, (slice(None), slice(None, 32))),  # at a half of the width of 64
        (0.0, NEUTRAL, (slice(None), slice(32, None))),  # flipped
        (NEUTRAL, 0.0, (slice(None), slice(None, 32))),  # upside down is the same
    ],
)
def test_resized_frames_are_flipped(column: float, row: float, white: tuple[slice, slice]) -> None:
    expected = torch.zeros(64, 64)
    expected[white] = 1
    config = config_without_jitter(resize_probability=1.0)
    cut, mask = augment(*half_lesion(), make_params(0.9, 0.1, column, row), config)
    assert torch.equal(mask[0, 0], expected)
    # The edge is blurred by one pixel on either side.
    assert (cut[0] - expected).abs().amax((0, 1))[[*range(31), *range(33, 64)]].max() == 0
    assert cut.min() >= 0
    assert cut.max() <= 1


@pytest.mark.parametrize(
    ("row_param", "corner"),
    # 5 - 3 + 1 = 3 rows share the parameters from 0.4: 0.2 for each.
    [(0.41, 0), (0.59, 0), (0.61, 1), (0.79, 1), (0.81, 2), (MAX_UNIFORM, 2)],
)
def test_crop_corners_are_uniform_beside_resizing(row_param: float, corner: int) -> None:
    image, mask = coordinate_image(5, 7)
    config = config_with_crop(3, flip_horizontal=0.0, flip_vertical=0.0, resize_probability=0.4)
    cut, _ = augment(image, mask, make_params(row_param, 0.0), config)
    assert (cut[0, :2, 0, 0] * 255).round().tolist() == [corner, 0]


def test_params_below_the_probability_resize() -> None:
    rows = torch.cat([make_params(0.39), make_params(0.4)])
    image, mask = (part.repeat(2, *[1] * 3) for part in half_lesion())
    _, both = augment(image, mask, rows, config_without_jitter(resize_probability=0.4))
    _, (whole,) = augment(*half_lesion(), rows[:1], config_without_jitter(resize_probability=1.0))
    _, (cropped,) = augment(*half_lesion(), make_params(0.0), config_without_jitter())
    assert torch.equal(both[0], whole)
    assert torch.equal(both[1], cropped)


@pytest.mark.parametrize(
    ("horizontal", "vertical", "expected"),
    # A parameter below the probability, here 0.5, flips.
    [
        (0.5, 0.5, [[1, 2], [3, 4]]),
        (0.49, 0.5, [[2, 1], [4, 3]]),
        (0.5, 0.49, [[3, 4], [1, 2]]),
        (0.0, 0.0, [[4, 3], [2, 1]]),
    ],
)
def test_flips(horizontal: float, vertical: float, expected: list[list[int]]) -> None:
    pattern = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    image = pattern[None, :, :, None].repeat(1, 1, 1, 3)
    mask = (pattern[None, None] == 1).byte()
    config = config_with_crop(2, flip_horizontal=0.5, flip_vertical=0.5)
    cut, moved = augment(image, mask, make_params(0, 0, horizontal, vertical), config)
    assert (cut * 255).round().int()[0, 0].tolist() == expected
    assert moved[0, 0].tolist() == [[float(v == 1) for v in row] for row in expected]


@pytest.mark.parametrize(("chance", "flipped"), [(0.0, False), (1.0, True)])
@pytest.mark.parametrize("value", [0.0, MAX_UNIFORM])
def test_flip_probabilities_of_0_and_1(chance: float, flipped: bool, value: float) -> None:
    image, mask = coordinate_image(2, 2)
    config = config_with_crop(2, flip_horizontal=chance, flip_vertical=chance)
    cut, _ = augment(image, mask, make_params(0, 0, value, value), config)
    assert (cut[0, :2, 0, 0] * 255).round().tolist() == ([1, 1] if flipped else [0, 0])


def test_a_white_and_a_black_pixel_span_the_range() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 2, 1).repeat(1, 2, 1, 3)
    config = config_with_crop(2, flip_horizontal=0.0, flip_vertical=0.0)
    cut, _ = augment(image, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), make_params(0, 0), config)
    assert cut[0, 0].tolist() == [[0.0, 1.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("kind", "strength", "value", "before", "after"),
    # Adjacent pixels. A parameter p scales a strength s to s (2 p - 1).
    [
        # 0.4 (2 * 0.75 - 1) = 0.2: times 1.2, and 0.9 * 1.2 = 1.08 is clipped to 1.
        ("brightness", 0.4, 0.75, [(0.5, 0.1, 0.9)], [(0.6, 0.12, 1.0)]),
        # 0.4 (2 * 0 - 1) = -0.4: times 0.6.
        ("brightness", 0.4, 0.0, [(0.5, 0.1, 0.9)], [(0.3, 0.06, 0.54)]),
        # About the mean luma of both, 0.4, by 1.2: 0.4 - 0.24 and 0.4 + 0.24.
        ("contrast", 0.4, 0.75, [(0.2,) * 3, (0.6,) * 3], [(0.16,) * 3, (0.64,) * 3]),
        # Luma 0.587 and 0.114: mean 0.3505, halved towards it by 0.5: 0.17525 + x / 2.
        (
            "contrast",
            0.5,
            0.0,
            [(0.0, 1.0, 0.0), (0.0, 0.0, 1.0)],
            [(0.17525, 0.67525, 0.17525), (0.17525, 0.17525, 0.67525)],
        ),
        # Red's luma 0.299 by 0.8: 0.299 + 0.701 * 0.8 and 0.299 - 0.299 * 0.8.
        ("saturation", 0.4, 0.25, [(1.0, 0.0, 0.0)], [(0.8598, 0.0598, 0.0598)]),
        # By 1.2: 1.1402 and -0.0598 are clipped.
        ("saturation", 0.4, 0.75, [(1.0, 0.0, 0.0)], [(1.0, 0.0, 0.0)]),
        ("saturation", 0.4, 0.75, [(0.3, 0.3, 0.3)], [(0.3, 0.3, 0.3)]),
        # 0.5 (2 * 5/6 - 1) = 1/3 of the circle: red to green, green to blue; -1/3 the other way.
        ("hue", 0.5, 5 / 6, [(1.0, 0.0, 0.0), (0.0, 0.5, 0.0)], [(0.0, 1.0, 0.0), (0.0, 0.0, 0.5)]),
        ("hue", 0.5, 1 / 6, [(1.0, 0.0, 0.0), (0.0, 0.5, 0.0)], [(0.0, 0.0, 1.0), (0.5, 0.0, 0.0)]),
        # 0.5 (2 * 4/6 - 1) = 1/6: red to yellow. Grey has no hue.
        ("hue", 0.5, 4 / 6, [(1.0, 0.0, 0.0), (0.7, 0.7, 0.7)], [(1.0, 1.0, 0.0), (0.7, 0.7, 0.7)]),
    ],
)  # fmt: skip
def test_jitter_by_hand(
    kind: str,
    strength: float,
    value: float,
    before: list[tuple[float, ...]],
    after: list[tuple[float, ...]],
) -> None:
    image = torch.tensor(before).T.reshape(1, 3, 1, -1)
    row = torch.full((1, 4), NEUTRAL, dtype=torch.float64)
    row[0, ["brightness", "contrast", "saturation", "hue"].index(kind)] = value
    found = color_jitter(image, row, config_without_jitter(**{kind: strength}))
    torch.testing.assert_close(found[0, :, 0].T, torch.tensor(after), atol=1e-6, rtol=0)


def test_jitter_order() -> None:
    # Brightness 1.2 on (1, 0.5, 0) is clipped to (1, 0.6, 0), then saturation 0.8 about its luma
    # 0.299 + 0.587 * 0.6 = 0.6512 gives (0.93024, 0.61024, 0.13024).
    image = torch.tensor([1.0, 0.5, 0.0]).reshape(1, 3, 1, 1)
    row = torch.tensor([[0.75, NEUTRAL, 0.25, NEUTRAL]], dtype=torch.float64)
    found = color_jitter(image, row, config_without_jitter(brightness=0.4, saturation=0.4))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.93024, 0.61024, 0.13024]))


def test_params_of_one_half_change_nothing() -> None:
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = color_jitter(
        image, torch.full((2, 4), NEUTRAL, dtype=torch.float64), AugmentConfig(crop=64)
    )
    torch.testing.assert_close(found, image)


def test_strengths_of_0_change_nothing() -> None:
    image = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert (
        color_jitter(image, torch.zeros(2, 4, dtype=torch.float64), config_without_jitter())
        is image
    )


def test_luma_weights() -> None:
    image = torch.eye(3).reshape(3, 3, 1, 1)
    assert rgb_to_grayscale(image).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])


@given(seed=SEEDS, turn=st.floats(-0.5, 0.5))
@settings(max_examples=20)
def test_hue_shift_equals_colorsys(seed: int, turn: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that greys and equal channels occur.
    pixels = torch.randint(0, 6, (64, 3), generator=generator).double() / 5
    turned = adjust_hue(
        pixels.reshape(1, 8, 8, 3).permute(0, 3, 1, 2), torch.full((1, 1, 1, 1), turn)
    )
    expected = []
    for red, green, blue in pixels.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    found = turned.permute(0, 2, 3, 1).reshape(64, 3)
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-5, rtol=0)

"""Segmentation of whole frames by a segmentor trained on squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from segan.inference.frames import segment_frames
from tests.inference.models import small_config, small_segmentor

MODES = ["native", "pad", "resize"]


def random_frames(height: int, width: int, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (images, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def segment(pixels: Tensor, mode: str, classes: int = 1, tta: bool = False) -> Tensor:
    evaluation = {"resize_mode": mode, "tta": tta}
    config = small_config(evaluation=evaluation, network={"width": 2, "classes": classes})
    return segment_frames(small_segmentor(config), pixels, config)


def segment_directly(pixels: Tensor) -> Tensor:
    x = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
    with torch.no_grad():
        return small_segmentor(small_config())(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(135, 180), (64, 64), (68, 90), (33, 129), (65, 33)], ids=str)
def test_a_map_is_as_large_as_its_frame(mode: str, size: tuple[int, int]) -> None:
    maps = segment(random_frames(*size), mode, classes=2)
    assert maps.shape == (2, 2, *size)
    assert maps.dtype == torch.float32
    assert 0 <= maps.min() < maps.max() <= 1
    assert not maps.requires_grad


def test_native_segments_the_unchanged_frame() -> None:
    pixels = random_frames(68, 90)
    torch.testing.assert_close(segment(pixels, "native"), segment_directly(pixels))


@pytest.mark.parametrize(
    ("size", "padding"),
    # To 128 x 128: 128 - 68 and 128 - 90. To 64 x 128: 64 - 64 and 128 - 100.
    [((68, 90), (60, 38)), ((64, 100), (0, 28))],
)
def test_pad_reflects_to_multiples_of_64(size: tuple[int, int], padding: tuple[int, int]) -> None:
    pixels = random_frames(*size)
    edges = ((0, 0), (0, padding[0]), (0, padding[1]), (0, 0))
    mirrored = torch.from_numpy(np.pad(pixels.numpy(), edges, mode="reflect"))
    expected = segment_directly(mirrored)[..., : size[0], : size[1]]
    torch.testing.assert_close(segment(pixels, "pad"), expected)


def test_resize_scales_to_the_crop_and_back() -> None:
    # A frame of one colour has that colour at any size; the map is resized bilinearly.
    pixels = torch.tensor([200, 30, 90], dtype=torch.uint8).expand(1, 100, 150, 3)
    square = segment_directly(pixels[:, :64, :64])
    expected = torch.nn.functional.interpolate(square, (100, 150), mode="bilinear")
    torch.testing.assert_close(segment(pixels, "resize"), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_frame_of_the_crops_size_is_not_changed(mode: str) -> None:
    pixels = random_frames(64, 64)
    torch.testing.assert_close(segment(pixels, mode), segment_directly(pixels))


def test_the_modes_differ_on_other_frames() -> None:
    pixels = random_frames(68, 90)
    whole, padded, resized = (segment(pixels, mode) for mode in MODES)
    assert not torch.allclose(whole, padded)
    assert not torch.allclose(whole, resized)


@pytest.mark.parametrize("mode", MODES)
def test_tta_is_the_mean_of_four_maps(mode: str) -> None:
    pixels = random_frames(68, 90)  # [B, H, W, 3], whose maps are [B, 1, H, W]
    total = segment(pixels, mode)
    for axes in ([1], [2], [1, 2]):
        total = total + segment(pixels.flip(axes), mode).flip([axis + 1 for axis in axes])
    mean = segment(pixels, mode, tta=True)
    torch.testing.assert_close(mean, total / 4)
    assert not torch.allclose(mean, segment(pixels, mode), atol=1e-3)


@pytest.mark.parametrize("axis", [1, 2])
def test_with_tta_a_mirrored_frame_has_the_mirrored_map(axis: int) -> None:
    pixels = random_frames(68, 90)
    mirrored = segment(pixels.flip(axis), "native", tta=True)
    torch.testing.assert_close(mirrored, segment(pixels, "native", tta=True).flip(axis + 1))


def test_a_segmentor_in_training_is_refused() -> None:
    config = small_config()
    with pytest.raises(AssertionError, match="batch statistics"):
        segment_frames(small_segmentor(config).train(), random_frames(64, 64), config)

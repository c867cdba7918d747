"""API responses: all numbers are those of the masks that `segan predict` writes."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from segan.inference.masks import encode_mask
from segan.inference.predictor import Member, Predictor
from segan.inference.upload import encode_preview
from segan.inference.view import ClassSegmentation, ImageSegmentation
from tests.inference.models import FRAME, small_config, small_segmentor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    """Three members in memory, with thresholds of their own."""
    config = small_config()
    segmentors = [small_segmentor(config, seed) for seed in range(3)]
    members = [
        Member(lambda s=s: s, config, (t,), "member")  # type: ignore[misc]
        for s, t in zip(segmentors, (0.4, 0.5, 0.6), strict=True)
    ]
    return Predictor(members, FRAME, 0.485, "three")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (101, 143, 3), dtype=np.uint8))


def segment_image(predictor: Predictor, image: Image.Image, picture: str = "") -> ClassSegmentation:
    maps = predictor.predict_proba(predictor.preprocess(image)[None])[0]
    return ImageSegmentation(predictor, maps, image.size, picture).of_class("lesion")


def test_the_mask_is_that_of_the_predictor(predictor: Predictor, image: Image.Image) -> None:
    np.testing.assert_array_equal(segment_image(predictor, image).mask(), predictor(image).mask)


def test_frames_of_a_batch_are_not_mixed_up(predictor: Predictor, image: Image.Image) -> None:
    images = [image, image.transpose(Image.Transpose.ROTATE_180), image.resize((64, 64))]
    together = predictor.predict_proba(torch.stack([predictor.preprocess(one) for one in images]))
    assert together.shape == (3, 3, 1, FRAME[1], FRAME[0])
    for one, maps in zip(images, together, strict=True):
        alone = predictor.predict_proba(predictor.preprocess(one)[None])[0]
        # oneDNN rounds batches differently, by 3e-4 with these weights; frames differ by more.
        torch.testing.assert_close(maps, alone, atol=5e-3, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_areas_and_disagreement_are_those_of_the_masks(
    predictor: Predictor, image: Image.Image
) -> None:
    *own, whole = predictor.predict_members(image)
    found = segment_image(predictor, image).to_contour()
    assert (found.width, found.height, found.threshold) == (143, 101, 0.485)
    assert found.area == whole.mask.sum()
    assert found.area_fraction == pytest.approx(whole.mask.sum() / (143 * 101))
    assert [member.area for member in found.members] == [one.mask.sum() for one in own]
    assert [member.threshold for member in found.members] == [0.4, 0.5, 0.6]
    some = own[0].mask | own[1].mask | own[2].mask
    every = own[0].mask & own[1].mask & own[2].mask
    assert 0 < found.disagreement < 1
    assert found.disagreement == pytest.approx((some & ~every).sum() / some.sum())


def test_a_single_member_has_neither_disagreement_nor_uncertainty(
    predictor: Predictor, image: Image.Image
) -> None:
    one = Predictor(predictor.members[:1], FRAME, 0.4, "one")
    assert segment_image(one, image).to_contour().disagreement is None
    assert segment_image(one, image).to_view().uncertainty is None


def test_disagreement_of_empty_masks_is_0(predictor: Predictor, image: Image.Image) -> None:
    members = [
        Member(m.read, m.config, (1,), m.name) for m in predictor.members
    ]  # nothing is above 1
    found = segment_image(Predictor(members, FRAME, 1, "none"), image).to_contour()
    assert (found.area, found.disagreement, found.contour.coordinates) == (0, 0, [])


def test_areas_by_threshold_are_those_of_the_masks(
    predictor: Predictor, image: Image.Image
) -> None:
    segmentation = segment_image(predictor, image)
    found = segmentation.to_view(0.4321)
    assert (
        len(found.thresholds) == 200
    )  # 199 of the sweep, with the model's among them, and this one
    assert found.thresholds == sorted(found.thresholds)
    for threshold, area in zip(found.thresholds, found.areas, strict=True):
        assert area == segmentation.mask(threshold).sum()
    assert found.areas[found.thresholds.index(0.4321)] == found.area


def test_maps_are_exact_to_16_bits(predictor: Predictor, image: Image.Image) -> None:
    segmentation = segment_image(predictor, image)
    found, maps = segmentation.to_view(), segmentation.maps
    shape = (found.frame.height, found.frame.width)
    assert shape == FRAME[::-1]
    for text, map_ in zip(
        [found.probability, found.uncertainty, *found.member_probabilities],
        [maps.mean(0), maps.std(0, correction=0), *maps],
        strict=True,
    ):
        values = np.frombuffer(base64.b64decode(text), "<u2").reshape(shape) / 65535
        np.testing.assert_allclose(values, map_.numpy(), atol=0.5 / 65535 + 1e-6)


def test_an_encoded_mask_is_black_and_white(predictor: Predictor, image: Image.Image) -> None:
    mask = segment_image(predictor, image).mask()
    stored = Image.open(io.BytesIO(encode_mask(mask)))
    assert (stored.format, stored.mode) == ("PNG", "L")
    np.testing.assert_array_equal(np.asarray(stored), mask * np.uint8(255))


@pytest.mark.parametrize(
    ("size", "expected"), [((143, 101), (143, 101)), ((3200, 400), (1600, 200))], ids=str
)
def test_a_preview_has_a_maximum_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    text = encode_preview(Image.new("RGB", size, (200, 120, 90)))
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    assert (picture.format, picture.size) == ("JPEG", expected)

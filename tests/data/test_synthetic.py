"""Synthetic pairs: reproducible, named as in ISIC 2017, varied, with exact masks."""

import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from segan.data import synthetic
from segan.errors import UsageError

SIZE = (96, 72)
Pair = tuple[np.ndarray, np.ndarray]


def generate(counts: dict[str, int], seed: int = 3, short_side: int = 48) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    synthetic.generate_archive(counts, seed, files.__setitem__, short_side)
    return files


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [synthetic.generate_pair(7, index, SIZE) for index in range(60)]


def test_the_same_seed_gives_the_same_bytes() -> None:
    counts = {"train": 3, "validation": 1, "test": 1}
    assert generate(counts) == generate(counts)
    assert generate(counts) != generate(counts, seed=4)


def test_a_pair_does_not_depend_on_the_other_pairs() -> None:
    few, many = generate({"train": 2}), generate({"train": 5, "test": 2})
    assert few.items() <= many.items()
    image, mask = synthetic.generate_pair(3, 4, short_side=48)
    stored = many["ISIC-2017_Training_Part1_GroundTruth/ISIC_0000004_segmentation.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored))), mask)
    assert image.shape[:2] == mask.shape
    assert not np.array_equal(
        synthetic.generate_pair(3, 5, SIZE)[0], synthetic.generate_pair(3, 4, SIZE)[0]
    )


def test_folders_names_and_ids_are_those_of_isic_2017() -> None:
    files: dict[str, bytes] = {}
    steps: list[int] = []
    counts = {"test": 1, "validation": 1, "train": 2}
    ids = synthetic.generate_archive(counts, 0, files.__setitem__, 32, steps.append)
    assert ids == ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002", "ISIC_0000003"]
    assert steps == [1, 2, 3, 4]
    folders = ("Training", "Training", "Validation", "Test_v2")
    names = [
        f"ISIC-2017_{folder}_Data/{name}.jpg" for folder, name in zip(folders, ids, strict=True)
    ]
    truths = [
        f"ISIC-2017_{folder}_Part1_GroundTruth/{name}_segmentation.png"
        for folder, name in zip(folders, ids, strict=True)
    ]
    assert sorted(files) == sorted(names + truths)


def test_files_are_a_colour_jpeg_and_a_binary_png_of_one_size() -> None:
    files = generate({"train": 6})
    images = [Image.open(io.BytesIO(files[name])) for name in files if name.endswith("jpg")]
    masks = [Image.open(io.BytesIO(files[name])) for name in files if name.endswith("png")]
    for image, mask in zip(images, masks, strict=True):
        assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "L")
        assert image.size == mask.size
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_sizes_spread_about_the_short_side_and_are_mostly_landscape() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([synthetic._sample_size(rng, 256) for _ in range(400)])
    short, aspect = sizes.min(axis=1), sizes[:, 0] / sizes[:, 1]
    assert short.min() >= 204
    assert 350 < short.max() <= 412
    assert ((aspect > 1.3) & (aspect < 1.55)).mean() > 0.85
    assert (aspect < 1.2).any()


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (200, 50)])
def test_any_size_holds_a_lesion(size: tuple[int, int]) -> None:
    for index in range(8):
        image, mask = synthetic.generate_pair(1, index, size)
        assert image.shape == (size[1], size[0], 3)
        assert 0.01 < (mask > 0).mean() < 0.75


def test_lesions_are_small_and_large_and_some_meet_the_border(pairs: list[Pair]) -> None:
    areas = np.array([(mask > 0).mean() for _, mask in pairs])
    assert 0.015 < areas.min() < 0.05
    assert 0.4 < areas.max() < 0.72
    frame = np.ones(SIZE[::-1], bool)
    frame[1:-1, 1:-1] = False
    meeting = sum(bool(mask[frame].any()) for _, mask in pairs)
    assert 3 <= meeting <= 30


def test_skin_is_light_and_dark(pairs: list[Pair]) -> None:
    skin = np.array([np.median(image[mask == 0], axis=0).mean() for image, mask in pairs])
    assert (skin > 190).sum() >= 5
    assert (skin < 110).sum() >= 5


def test_most_lesions_are_darker_than_their_skin_and_some_hardly(pairs: list[Pair]) -> None:
    contrast = np.array(
        [np.median(image[mask == 0]) - np.median(image[mask > 0]) for image, mask in pairs]
    )
    assert np.median(contrast) > 30
    assert (contrast < 20).sum() >= 3


def test_a_confounder_changes_the_image_and_never_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = dict.fromkeys(synthetic.CONFOUNDERS, 1.0)
    monkeypatch.setattr(synthetic, "CONFOUNDERS", {})
    bare = [synthetic.generate_pair(7, index, SIZE) for index in range(12)]
    monkeypatch.setattr(synthetic, "CONFOUNDERS", everything)
    for index, (image, mask) in enumerate(bare):
        dressed, same_mask = synthetic.generate_pair(7, index, SIZE)
        np.testing.assert_array_equal(same_mask, mask)
        assert np.abs(dressed.astype(int) - image).max() > 60


@pytest.mark.parametrize(
    "add", [synthetic._add_ink, synthetic._add_sticker, synthetic._add_vignette]
)
def test_confounders_do_not_hide_the_lesion(
    add: Callable[[np.random.Generator, np.ndarray, np.ndarray], None], pairs: list[Pair]
) -> None:
    covered = 0
    for index, (_, mask) in enumerate(pairs):
        image = np.full((*mask.shape, 3), 200, np.float32)
        add(np.random.default_rng(index), image, mask > 0)
        change = np.abs(image - 200).max(axis=2)
        assert change[mask > 0].max() < 8
        covered += bool(change.max() > 40)
    assert covered > len(pairs) / 3


def jaccard(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float((predicted & truth).sum() / (predicted | truth).sum())


def test_thresholding_brightness_is_not_enough(pairs: list[Pair]) -> None:
    """Even the best global level of each image, which no method could know, falls short."""
    best = [
        max(jaccard(image.mean(axis=2) < level, mask > 0) for level in range(20, 250, 10))
        for image, mask in pairs
    ]
    assert 0.4 < np.mean(best) < 0.8
    assert min(best) < 0.3


@pytest.mark.parametrize(
    ("counts", "seed", "short_side", "said"),
    [
        ({"train": -1}, 0, 64, "counts['train']: expected 0 pairs or more, found -1"),
        (
            {"dev": 1},
            0,
            64,
            "counts: expected only the splits train, validation, test, found 'dev'",
        ),
        ({"train": 1}, 0, 31, "short_side: expected 32 px or more, found 31"),
        ({"train": 1}, -1, 64, "seed and index: expected 0 or more, found (-1, 0)"),
    ],
)
def test_invalid_arguments_are_refused(
    counts: dict[str, int], seed: int, short_side: int, said: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        generate(counts, seed, short_side)


def test_a_size_that_is_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match=r"size: expected sides of 16 px or more, found \(64, 8\)"):
        synthetic.generate_pair(0, 0, (64, 8))

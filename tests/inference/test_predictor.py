"""Models from storage, and their masks for images of any size and mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segan.errors import StorageError
from segan.inference.frames import segment_frames
from segan.inference.predictor import Predictor
from segan.runs.run import Run
from tests.inference.models import FRAME, save_checkpoint, small_config, small_segmentor


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Three checkpoints, of which the second is the best."""
    run = Run(str(tmp_path / "run"))
    for epoch, jaccard, threshold in ((1, 0.2, 0.3), (2, 0.7, 0.45), (3, 0.6, 0.5)):
        save_checkpoint(run, small_config(), epoch, jaccard, threshold)
    return run


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def has_weights_of(predictor: Predictor, epoch: int) -> bool:
    expected = small_segmentor(small_config(), epoch).state_dict()
    found = predictor.members[0].read().state_dict()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_runs_best_checkpoint_is_loaded(run: Run) -> None:
    predictor = Predictor.load(run.uri)
    assert has_weights_of(predictor, 2)
    assert (predictor.frame_size, predictor.threshold) == (FRAME, 0.45)
    assert predictor.name == f"{run.uri}/checkpoints/epoch_00002"
    assert predictor.members[0].config == small_config()
    assert not predictor.members[0].read().training


def test_a_checkpoint_is_loaded_by_its_own_name(run: Run) -> None:
    predictor = Predictor.load(f"{run.uri}/checkpoints/epoch_00003", threshold=0.9)
    assert has_weights_of(predictor, 3)
    assert predictor.threshold == 0.9


def test_k_is_loaded_with_the_weights(run: Run) -> None:
    assert Predictor.load(run.uri).members[0].read().logistic.k.item() == 0.5


def test_tta_overrides_the_runs_config(run: Run) -> None:
    image = random_image(*FRAME)
    plain, flipped = Predictor.load(run.uri), Predictor.load(run.uri, tta=True)
    config = small_config(evaluation={"tta": True})
    assert flipped.members[0].config == config
    frames = torch.from_numpy(np.array(image))[None]
    expected = segment_frames(flipped.members[0].read(), frames, config)[0, 0].numpy()
    np.testing.assert_allclose(flipped(image).probability, expected, atol=1e-6)
    assert not np.allclose(plain(image).probability, expected, atol=1e-3)
    save_checkpoint(run, config, 4, 0.8, 0.5)  # now the best, with tta in its config
    assert Predictor.load(run.uri).members[0].config.evaluation.tta
    assert not Predictor.load(run.uri, tta=False).members[0].config.evaluation.tta


@pytest.mark.parametrize("size", [FRAME, (33, 200), (301, 77), (1, 1)], ids=str)
def test_a_mask_has_its_images_size(run: Run, size: tuple[int, int]) -> None:
    found = Predictor.load(run.uri)(random_image(*size))
    assert found.probability.shape == found.mask.shape == (size[1], size[0])
    assert (found.probability.dtype, found.mask.dtype) == (np.float32, np.bool_)
    assert found.probability.min() >= 0
    assert found.probability.max() <= 1


def test_a_mask_is_where_the_probability_is_above_the_threshold(run: Run) -> None:
    image = random_image(120, 100)
    middle = float(np.median(Predictor.load(run.uri)(image).probability))
    found = Predictor.load(run.uri, middle)(image)
    np.testing.assert_array_equal(found.mask, found.probability > np.float32(middle))
    assert 0.4 < found.mask.mean() < 0.6


def test_an_image_of_the_frames_size_is_not_resized(run: Run) -> None:
    predictor, image = Predictor.load(run.uri), random_image(*FRAME)
    frames = torch.from_numpy(np.array(image))[None]
    (member,) = predictor.members
    expected = segment_frames(member.read(), frames, member.config)[0, 0]
    np.testing.assert_allclose(predictor(image).probability, expected.numpy(), atol=1e-6)


def test_a_map_is_resized_bilinearly(run: Run) -> None:
    predictor, image = Predictor.load(run.uri), random_image(*FRAME)
    large = image.resize((FRAME[0] * 3, FRAME[1] * 3), Image.Resampling.NEAREST)
    frame = large.resize(FRAME, Image.Resampling.BILINEAR)
    small = Image.fromarray(predictor(frame).probability)
    expected = np.asarray(small.resize(large.size, Image.Resampling.BILINEAR))
    np.testing.assert_allclose(predictor(large).probability, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_mode_are_accepted(run: Run, mode: str) -> None:
    predictor, image = Predictor.load(run.uri), random_image(80, 60, mode)
    expected = predictor(image.convert("RGB"))
    np.testing.assert_array_equal(predictor(image).probability, expected.probability)


def test_a_flipped_bit_is_detected(run: Run) -> None:
    file = Path(run.uri) / "checkpoints/epoch_00002/segmentor.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StorageError, match=r"segmentor\.safetensors: .* checksum"):
        Predictor.load(run.uri)


@pytest.mark.parametrize("place", ["", "run/checkpoints/epoch_00009"])
def test_a_missing_model_is_an_error(run: Run, tmp_path: Path, place: str) -> None:
    with pytest.raises(StorageError, match="neither a checkpoint nor a run"):
        Predictor.load(str(tmp_path / place))

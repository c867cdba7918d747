"""A MONAI bundle: its network takes whole images, and MONAI's own command runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from segan.data.synthetic import generate_pair
from segan.inference.export import export
from segan.inference.predictor import Predictor
from tests.inference.models import untrained_predictor
from tests.inference.test_export import FRAME, make_predictor

pytestmark = pytest.mark.timeout(300)
# Images of the frames' size are not resized, so that masks are equal but for single pixels. Else
# some values of the frame are rounded differently, which untrained networks amplify.
MAX_DIFFERENT_PIXELS, MAX_DIFFERENT_AFTER_RESIZING = 1e-3, 0.08


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor({"resize_mode": "native"}, {"resize_mode": "resize", "tta": True})


@pytest.fixture(scope="module")
def bundle(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    export(predictor, str(folder), "monai-bundle")
    return folder


def test_the_network_takes_whole_images_of_any_size(predictor: Predictor, bundle: Path) -> None:
    network = torch.export.load(str(bundle / "models" / "model.pt2")).module()
    for seed, size in enumerate([FRAME, (340, 256), (200, 301)]):
        pixels = generate_pair(seed, 0, size)[0]
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            found = network(image)[0, 0].numpy() > predictor.threshold
        expected = predictor.predict(pixels).mask
        assert found.shape == expected.shape
        assert 0.01 < expected.mean() < 0.99
        limit = MAX_DIFFERENT_PIXELS if size == FRAME else MAX_DIFFERENT_AFTER_RESIZING
        assert (found != expected).mean() <= limit


def test_its_files_describe_it(predictor: Predictor, bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "lesion"}
    assert [member["checkpoint"] for member in metadata["segan"]["members"]] == ["seed 0", "seed 1"]
    inference = json.loads((bundle / "configs" / "inference.json").read_text())
    assert inference["threshold"] == predictor.threshold
    readme = (bundle / "docs" / "README.md").read_text()
    assert "python -m monai.bundle run --config_file configs/inference.json" in readme


def test_monais_own_command_writes_the_models_masks(predictor: Predictor, bundle: Path) -> None:
    pytest.importorskip("monai", reason="MONAI is not installed")
    (bundle / "images").mkdir()
    for seed, size in enumerate([FRAME, FRAME[::-1], (340, 256)]):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if seed == 1 else 1  # a quarter turn makes it FRAME
        image = Image.fromarray(generate_pair(seed, 0, size)[0])
        image.save(bundle / "images" / f"ISIC_{seed:07}.jpg", quality=95, exif=exif)
    run_bundle(bundle)
    for path in sorted((bundle / "images").glob("*.jpg")):
        mask = np.asarray(Image.open(bundle / "masks" / f"{path.stem}_segmentation.png"))
        expected = predictor.predict(path).mask
        assert mask.shape == expected.shape
        assert set(np.unique(mask)) <= {0, 255}
        is_frame = mask.shape == FRAME[::-1]
        limit = MAX_DIFFERENT_PIXELS if is_frame else MAX_DIFFERENT_AFTER_RESIZING
        assert ((mask > 0) != expected).mean() <= limit


def test_monais_own_command_writes_a_mask_for_each_class(tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="MONAI is not installed")
    model, labels = untrained_predictor((0,), ("streaks", "globules")), ("streaks", "globules")
    predictor = Predictor(model.members, model.frame_size, (0.45, 0.55), "two classes", labels)
    export(predictor, str(tmp_path), "monai-bundle")
    (tmp_path / "images").mkdir()
    pixels = generate_pair(0, 0, predictor.frame_size)[0]
    Image.fromarray(pixels).save(tmp_path / "images" / "ISIC_0000000.png")
    run_bundle(tmp_path)
    for name, one in predictor.predict(pixels).by_class().items():
        mask = np.asarray(Image.open(tmp_path / "masks" / name / "ISIC_0000000_segmentation.png"))
        assert set(np.unique(mask)) == {0, 255}
        assert ((mask > 0) != one.mask).mean() <= MAX_DIFFERENT_PIXELS


def run_bundle(folder: Path) -> None:
    words = ["--config_file", "configs/inference.json", "--bundle_root", "."]
    command = [sys.executable, "-m", "monai.bundle", "run", *words]
    subprocess.run(command, cwd=folder, check=True)

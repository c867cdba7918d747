"""Exports: files that other programs load, and their verification."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.swa_utils import update_bn

from segan import storage
from segan.config import Config
from segan.data.synthetic import generate_pair
from segan.errors import SeganError, UsageError
from segan.inference import export as exporting
from segan.inference.export import EnsembleModule, export
from segan.inference.predictor import Member, Predictor
from segan.networks.segmentor import Segmentor, build_segmentor
from tests.inference.models import small_config, untrained_predictor

pytestmark = pytest.mark.timeout(300)  # the exporters are slow
FRAME = (108, 81)
THRESHOLD = 0.5


def calibrated_segmentor(config: Config, seed: int) -> Segmentor:
    """A segmentor with norms calibrated on images, and maps as smooth as after training.

    Untrained weights amplify differences of rounding; a large k compensates.
    """
    segmentor = build_segmentor(config.network, seed)
    images = np.stack([generate_pair(9, i, (192, 160))[0] for i in range(8)])
    update_bn([torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255], segmentor)
    segmentor.logistic.set_k(6.0 + seed)
    return segmentor.eval()


def make_predictor(*evaluations: dict[str, Any]) -> Predictor:
    """A predictor with a member for each evaluation config."""
    members = []
    for seed, way in enumerate(evaluations):
        config = small_config(evaluation=way)
        read = functools.cache(functools.partial(calibrated_segmentor, config, seed))
        members.append(Member(read, config, (0.5,), f"seed {seed}", f"sha of {seed}"))
    return Predictor(members, FRAME, THRESHOLD, "two")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor({"resize_mode": "native"}, {"resize_mode": "resize"})


@pytest.fixture(scope="module")
def exported(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble in ONNX."""
    folder = tmp_path_factory.mktemp("exported")
    export(predictor, str(folder), "onnx")
    return folder


def synthetic_image(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(generate_pair(seed, 0, (width, height))[0])


def test_the_readmes_program_runs_without_torch_and_gives_the_models_mask(
    predictor: Predictor, exported: Path
) -> None:
    program = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.S)
    assert program
    image = synthetic_image(1, 340, 256)
    image.save(exported / "photograph.jpg", quality=95)
    alone = "import sys\nsys.modules['torch'] = None  # importing it fails\n"
    keep = "np.save('mask.npy', mask)\nnp.save('probability.npy', np.asarray(probability))\n"
    subprocess.run([sys.executable, "-c", alone + program[1] + keep], cwd=exported, check=True)
    expected = predictor(Image.open(exported / "photograph.jpg"))
    found = np.load(exported / "probability.npy")
    np.testing.assert_allclose(found, expected.probability, rtol=0, atol=1e-4)
    differ = np.load(exported / "mask.npy") != expected.mask
    assert 0.01 < expected.mask.mean() < 0.99
    assert differ.mean() <= 1e-4


@pytest.mark.parametrize("shape", [(1, 33, 65), (4, 81, 108), (2, 200, 90)], ids=str)
def test_any_size_and_number_of_images(
    predictor: Predictor, exported: Path, shape: tuple[int, int, int]
) -> None:
    count, height, width = shape
    images = np.stack([np.asarray(synthetic_image(i, width, height)) for i in range(count)])
    x = images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    found = exporting.load_exported(exported / "model.onnx")(x)
    with torch.inference_mode():
        expected = EnsembleModule(predictor)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_metadata_in_the_file_equal_model_json(exported: Path) -> None:
    import onnxruntime

    about = json.loads((exported / "model.json").read_text())
    assert about["threshold"] == THRESHOLD
    assert about["frame"] == {"width": 108, "height": 81}
    assert [member["k"] for member in about["members"]] == pytest.approx([6.0, 7.0])
    assert [member["sha256"] for member in about["members"]] == [f"sha of {i}" for i in range(2)]
    assert about["verification"]["max_abs_difference"] <= about["verification"]["tolerance"] == 1e-4
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    held = session.get_modelmeta().custom_metadata_map
    del about["verification"]  # not known when the file is written
    assert {key: _from_metadata(text, about[key]) for key, text in held.items()} == about
    (takes,) = session.get_inputs()
    assert (takes.name, takes.type) == ("image", "tensor(float)")
    assert [isinstance(side, str) for side in takes.shape] == [True, False, True, True]


def _from_metadata(text: str, like: Any) -> Any:
    return text if isinstance(like, str) else json.loads(text)


def test_the_torch_format_gives_identical_maps(tmp_path: Path) -> None:
    one = make_predictor({"resize_mode": "pad"})
    about = export(one, str(tmp_path), "torch")
    assert about["verification"]["max_abs_difference"] == 0
    kept = {"model.json": ""}
    torch.export.load(str(tmp_path / "model.pt2"), extra_files=kept)
    assert json.loads(kept["model.json"])["members"][0]["k"] == pytest.approx(6.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md", "model.json", "model.pt2"
    ]  # fmt: skip


def test_group_norms_are_exported(tmp_path: Path) -> None:
    network = {"width": 8, "segmentor_norm": "group", "segmentor_init": "uniform"}
    about = export(untrained_predictor(network=network), str(tmp_path), "onnx")
    assert about["verification"]["max_abs_difference"] < 1e-4


def test_safetensors_are_the_members_weights(predictor: Predictor, tmp_path: Path) -> None:
    from safetensors import safe_open

    export(predictor, str(tmp_path), "safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("2.logistic.k").item() == pytest.approx(7.0)
        assert json.loads(file.metadata()["threshold"]) == THRESHOLD
        expected = predictor.members[1].read().state_dict()
        assert all(torch.equal(file.get_tensor(f"2.{name}"), expected[name]) for name in expected)


def test_a_file_that_gives_other_maps_is_not_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_models(whole: EnsembleModule, size: Any, about: Any, file: Path) -> None:
        shutil.copy(exported / "model.onnx", file)

    monkeypatch.setattr(exporting, "_export_program", other_models)
    with pytest.raises(
        SeganError, match=r"differ from the model's by 0\.\d+ .* nothing was written"
    ):
        export(make_predictor({"resize_mode": "native"}), f"{tmp_path}/out", "onnx")
    assert storage.list_files(f"{tmp_path}/out") == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        UsageError, match=r"needs onnxscript, which is not installed; pip install 'segan\[export\]'"
    ):
        export(make_predictor({"resize_mode": "native"}), f"{tmp_path}/out", "onnx")
    assert storage.list_files(f"{tmp_path}/out") == []

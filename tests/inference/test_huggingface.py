"""A folder of the Hugging Face Hub is written by `segan export` and read by `Predictor.load`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load

from segan.data.synthetic import generate_pair
from segan.errors import CorruptedError
from segan.inference.export import export
from segan.inference.predictor import Predictor
from segan.runs.run import Run
from tests.inference.models import save_checkpoint, small_config, untrained_predictor

PIXELS = generate_pair(0, 0, (120, 90))[0]


@pytest.fixture
def predictor() -> Predictor:
    return untrained_predictor((0, 1), evaluation={"resize_mode": "resize", "tta": True})


@pytest.fixture
def folder(predictor: Predictor, tmp_path: Path) -> Path:
    export(predictor, str(tmp_path / "hub"), "huggingface")
    return tmp_path / "hub"


def test_it_is_read_back_as_the_same_model(predictor: Predictor, folder: Path) -> None:
    for options in ({}, {"low_memory": True}):
        found = Predictor.load(str(folder), **options)
        assert (found.threshold, found.frame_size) == (predictor.threshold, predictor.frame_size)
        assert [m.thresholds for m in found.members] == [(0.5,), (0.5,)]
        np.testing.assert_array_equal(
            found.predict(PIXELS).probability, predictor.predict(PIXELS).probability
        )
    plain = Predictor.load(str(folder), threshold=0.25, tta=False)
    assert plain.threshold == 0.25
    assert not np.array_equal(
        plain.predict(PIXELS).probability, predictor.predict(PIXELS).probability
    )


def test_the_folder_has_what_the_hub_shows(predictor: Predictor, folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert (matter["library_name"], matter["pipeline_tag"]) == ("segan", "image-segmentation")
    assert "no medical device" in body
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "segan"
    assert set(config["members"][0]["config"]) == {"network", "augment", "evaluation"}
    weights = load((folder / "model.safetensors").read_bytes())
    assert {name.partition(".")[0] for name in weights} == {"1", "2"}


def test_a_run_is_exported_too_and_its_masks_go_on(tmp_path: Path) -> None:
    uri = save_checkpoint(Run(str(tmp_path / "run")), small_config(), 1, 0.5, 0.4)
    export(Predictor.load(uri), str(tmp_path / "hub"), "huggingface")
    one, other = Predictor.load(uri), Predictor.load(str(tmp_path / "hub"))
    assert [m.sha256 for m in one.members] == [m.sha256 for m in other.members]
    assert one.threshold == other.threshold == 0.4


def test_changed_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptedError, match=r"model\.safetensors: .* do not match the checksum"):
        Predictor.load(str(folder))


@pytest.mark.parametrize(
    ("key", "value"), [("threshold", 2), ("members", []), ("frame", {"width": 0, "height": 1})]
)
def test_an_invalid_config_is_refused(key: str, value: object, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CorruptedError, match=rf"config\.json: not the configuration .*{key}"):
        Predictor.load(str(folder))

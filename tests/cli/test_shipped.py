"""A model that ships with the package: packed by the documented command, found by its bare name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from segan.config import load_config, parse_config
from segan.inference.predictor import Predictor
from segan.runs import shipped
from segan.runs.checkpoint import SEGMENTOR_FILE
from segan.runs.ensemble import Ensemble, read_ensemble
from segan.runs.identity import config_identity
from segan.runs.shipped import shipped_models
from tests.cli.test_cli import TINY_OVERRIDES, error_message, run_cli
from tests.inference.models import read_files

NAME = "tiny"
MAX_SHIPPED_BYTES = 16 * 10**6
# A path of the machine that the model was made on.
LOCAL_PATH = re.compile(r"/(?:home|root|tmp|work|Users|var|mnt|data)/")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, an ensemble of three trained runs, and the ensemble packed as models/tiny."""
    root = tmp_path_factory.mktemp("shipped")
    counts = ["--train", 8, "--validation", 4, "--test", 2, "--short-side", 64]
    assert run_cli("synth", root / "archive", *counts).exit_code == 0
    size = ["--width", 72, "--height", 64]
    done = run_cli("ingest", root / "archive", root / "records", *size, "--local")
    assert done.exit_code == 0, done.stderr
    members = []
    for seed in range(3):
        run = root / "runs" / f"seed{seed}"
        words = [run, f"data.records={root}/records", f"training.seed={seed}", *TINY_OVERRIDES]
        done = run_cli("train", *words, "evaluation.report=false", "--local")
        assert done.exit_code == 0, done.stderr
        members += ["--member", run]
    assert run_cli("ensemble", "build", *members, "--out", root / "three").exit_code == 0
    options = ["--half", "--tta", "--archive", root / "archive"]
    done = run_cli("ensemble", "pack", root / "three", root / "models" / NAME, *options)
    assert done.exit_code == 0, done.stderr
    return root


@pytest.fixture
def models(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of packed models, as that of the package."""
    monkeypatch.setattr(shipped, "SHIPPED_FOLDER", root / "models")
    assert [*shipped_models()] == [NAME]
    return root / "models"


@pytest.fixture
def photograph(root: Path) -> Path:
    return next((root / "archive" / "ISIC-2017_Test_v2_Data").glob("*.jpg"))


def check_handed_on(folder: Path) -> Ensemble:
    """Checks what every model that is handed on has to be."""
    files = read_files(str(folder))
    ensemble = read_ensemble(str(folder))
    weights = {f"{i}/{SEGMENTOR_FILE}" for i, _ in enumerate(ensemble.members, 1)}
    assert set(files) == {"ensemble.json", "card.md"} | weights
    assert sum(map(len, files.values())) <= MAX_SHIPPED_BYTES
    for name in ("ensemble.json", "card.md"):
        assert not LOCAL_PATH.search(files[name].decode()), name
    assert run_cli("checkpoints", "verify", folder).exit_code == 0
    card = files["card.md"].decode()
    for words in ("segan train", "segan ensemble pack", "95 %", "medical device", "Limits"):
        assert words in card
    return ensemble


def test_the_package_is_as_it_should_be() -> None:
    """Of the models that ship now."""
    for name, folder in shipped_models().items():
        ensemble = check_handed_on(folder)
        assert len(Predictor.load(name).members) == len(ensemble.members)


def test_a_packed_model_is_half_the_size_and_names_no_place(root: Path) -> None:
    packed, source = check_handed_on(root / "models" / NAME), read_ensemble(str(root / "three"))
    for i, (member, original) in enumerate(zip(packed.members, source.members, strict=True), 1):
        sizes = [m.files[SEGMENTOR_FILE].size for m in (member, original)]
        assert sizes[0] < 0.65 * sizes[1]
        assert member.uri == "/".join(
            (f"seed{original.info.config['training']['seed']}", "epoch_00001")
        )
        assert (member.info.progress, member.info.config["evaluation"]["tta"]) == (None, True)
        stored, exact = (
            load((root / place / str(i) / SEGMENTOR_FILE).read_bytes())
            for place in (f"models/{NAME}", "three")
        )
        for key, value in exact.items():
            torch.testing.assert_close(stored[key].to(value.dtype), value, rtol=5e-4, atol=1e-7)
            if value.ndim < 2:
                assert torch.equal(stored[key], value), key


def test_its_scores_are_those_of_the_packed_weights(root: Path, models: Path) -> None:
    packed = read_ensemble(str(models / NAME))
    records = run_cli(
        "evaluate", NAME, root / "archive", "--split", "validation", "--local", "--json"
    )
    found = records.json
    assert (found["model"], found["threshold"]) == (NAME, packed.threshold)
    card = (models / NAME / "card.md").read_text()
    for score in ("accuracy", "dice", "jaccard"):
        assert f"| {score} | {found[score]:.4f} (" in card
    assert f"{packed.scores['jaccard']:.4f} (" in card


def test_the_commands_of_the_card_configure_the_same_runs(root: Path) -> None:
    card = (root / "models" / NAME / "card.md").read_text()
    *trainings, build, pack = card.partition("```sh\n")[2].partition("\n```")[0].splitlines()
    members = read_ensemble(str(root / "three")).members
    for line, member in zip(trainings, members, strict=True):
        run, records, *overrides = line.removeprefix("segan train ").split()
        assert run == "runs/" + member.uri.split("/")[-3]
        assert records == "data.records=RECORDS"
        configs = load_config(None, overrides), parse_config(member.info.config)
        identities = [config_identity(config, "cluster") for config in configs]
        assert identities[0] == identities[1]
    assert build.count("--member runs/seed") == 3
    assert pack == f"segan ensemble pack ENSEMBLE {NAME} --half --tta"


def test_a_bare_name_segments_a_photograph(models: Path, photograph: Path, tmp_path: Path) -> None:
    done = run_cli("predict", NAME, photograph, tmp_path / "out", "--uncertainty")
    assert done.exit_code == 0, done.stderr
    assert "Ray" not in done.stderr
    mask = np.asarray(Image.open(tmp_path / "out" / f"{photograph.stem}_segmentation.png")) > 0
    model = Predictor.load(NAME)
    assert (model.name, [member.name for member in model.members]) == (
        NAME,
        [f"{NAME}/{i}" for i in (1, 2, 3)],
    )
    np.testing.assert_array_equal(mask, model(Image.open(photograph)).mask)
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["model"] == NAME


def test_a_bare_name_is_a_model_for_export_verify_and_download(
    models: Path, photograph: Path, tmp_path: Path
) -> None:
    done = run_cli("export", NAME, tmp_path / "exported", "--format", "safetensors", "--json")
    assert [m["checkpoint"] for m in done.json["members"]] == [f"{NAME}/{i}" for i in (1, 2, 3)]
    assert run_cli("checkpoints", "verify", NAME).exit_code == 0
    for missing in (5, 0):  # three files of weights, the card and ensemble.json
        found = run_cli("checkpoints", "download", NAME, tmp_path / "copy", "--json").json
        assert (found["ensemble"], len(found["downloaded"])) == (NAME, missing)
    copy = read_files(str(tmp_path / "copy"))
    assert copy == read_files(str(models / NAME))
    image = Image.open(photograph)
    np.testing.assert_array_equal(
        Predictor.load(str(tmp_path / "copy"))(image).probability,
        Predictor.load(NAME)(image).probability,
    )
    assert "leave --name away" in error_message(
        2, "checkpoints", "download", NAME, tmp_path / "x", "--name", "best"
    )


def test_a_folder_of_the_same_name_is_found_by_its_path(
    root: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).symlink_to(root / "three")
    assert Predictor.load(NAME).name == NAME
    assert Predictor.load(f"./{NAME}").name == str(tmp_path / NAME)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "tinny", "x.jpg", "out"],
        ["evaluate", "tinny", "archive"],
        ["export", "tinny", "out"],
        ["checkpoints", "download", "tinny", "out"],
        ["checkpoints", "verify", "tinny"],
    ],
)
def test_an_unknown_word_names_the_models_that_ship(
    words: list[str], models: Path, root: Path, photograph: Path
) -> None:
    places = {"x.jpg": photograph, "archive": root / "archive"}
    message = error_message(2, *(places.get(word, word) for word in words))
    assert message.startswith("tinny: neither a model that ships with segan (tiny) nor a folder")
    assert "s3:// URI of a run, a checkpoint or an ensemble" in message


def test_changed_weights_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        run_cli("checkpoints", "download", root / "models" / NAME, tmp_path / NAME).exit_code == 0
    )
    monkeypatch.setattr(shipped, "SHIPPED_FOLDER", tmp_path)
    weights = tmp_path / NAME / "2" / SEGMENTOR_FILE
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    message = error_message(1, "export", NAME, tmp_path / "out")
    assert "2/segmentor.safetensors" in message
    assert "do not match" in message
    assert run_cli("checkpoints", "verify", NAME).exit_code == 1

"""Models with several classes: predictions, files, rows, exports and responses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segan import storage
from segan.errors import CorruptedError, StorageError, UsageError
from segan.inference.export import describe, export, load_exported
from segan.inference.masks import MaskWriter, find_images, to_label_image
from segan.inference.monai_bundle import make_configs
from segan.inference.pipeline import run_image_task
from segan.inference.predictions import PredictionTable, read_predictions
from segan.inference.predictor import Prediction, Predictor
from segan.inference.region_stats import region_stats
from segan.inference.view import ImageSegmentation
from segan.runs.checkpoint import CheckpointInfo
from segan.runs.run import Run
from tests.inference.models import FRAME, save_weights, small_config, untrained_predictor

LABELS = ("streaks", "globules", "cysts")
THRESHOLDS = (0.3, 0.5, 0.6)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    model = untrained_predictor((0, 1), LABELS)
    return Predictor(model.members, FRAME, THRESHOLDS, "three classes", LABELS)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (77, 130, 3), dtype=np.uint8))


def test_a_prediction_has_a_map_for_each_class(predictor: Predictor, image: Image.Image) -> None:
    found = predictor.predict(image)
    assert found.class_names == predictor.class_names == LABELS
    assert found.probability.shape == found.mask.shape == (3, 77, 130)
    assert (found.probability.dtype, found.mask.dtype) == (np.float32, bool)
    for i, (name, one) in enumerate(found.by_class().items()):
        assert name == LABELS[i]
        np.testing.assert_array_equal(one.probability, found.probability[i])
        np.testing.assert_array_equal(one.mask, one.probability > np.float32(THRESHOLDS[i]))
        np.testing.assert_array_equal(one.mask, found[name].mask)
        assert 0 < one.mask.mean() < 1
    with pytest.raises(UsageError, match="class 'lesion': expected one of streaks, globules, cyst"):
        found["lesion"]


def test_each_class_is_that_of_a_model_of_it_alone(
    predictor: Predictor, image: Image.Image
) -> None:
    """The maps of a class are not mixed up with those of another, nor with the members."""
    maps = predictor.predict_proba(predictor.preprocess(image)[None])[0]
    assert maps.shape == (2, 3, FRAME[1], FRAME[0])
    whole = predictor.postprocess(maps, image.size)
    for i, threshold in enumerate(THRESHOLDS):
        alone = Predictor(predictor.members, FRAME, threshold, "alone")
        one = alone.postprocess(maps[:, i : i + 1], image.size)
        np.testing.assert_array_equal(one.mask, whole.mask[i])
        np.testing.assert_array_equal(one.probability, whole.probability[i])


def test_one_threshold_is_that_of_every_class(predictor: Predictor) -> None:
    assert Predictor(predictor.members, FRAME, 0.25, "x", LABELS).thresholds == (0.25,) * 3
    with pytest.raises(UsageError, match="has a threshold for each of streaks, globules, cysts"):
        _ = predictor.threshold


def save_run(uri: str, metrics: dict[str, Any], labels: tuple[str, ...], classes: int) -> str:
    config = small_config(network={"width": 2, "classes": classes})
    info = CheckpointInfo(
        epochs=1,
        samples=1,
        metrics={"jaccard": 0.5, "threshold": 0.4} | metrics,
        fingerprint="none",
        frame={"width": FRAME[0], "height": FRAME[1]},
        class_names=labels,
        config=config.model_dump(mode="json"),
    )
    return save_weights(Run(uri), config, info)


def test_a_checkpoint_keeps_names_and_thresholds(tmp_path: Path) -> None:
    thresholds = dict(zip(LABELS, THRESHOLDS, strict=True))
    save_run(f"{tmp_path}/run", {"class_thresholds": thresholds}, LABELS, 3)
    found = Predictor.load(f"{tmp_path}/run")
    assert (found.class_names, found.thresholds) == (LABELS, THRESHOLDS)
    assert found.members[0].thresholds == THRESHOLDS
    assert Predictor.load(f"{tmp_path}/run", threshold=0.9).thresholds == (0.9,) * 3


def test_a_checkpoint_without_names_has_numbers(tmp_path: Path) -> None:
    save_run(f"{tmp_path}/run", {}, (), 2)
    found = Predictor.load(f"{tmp_path}/run")
    assert (found.class_names, found.thresholds) == (("class_1", "class_2"), (0.4, 0.4))


def test_a_checkpoint_of_one_class_has_no_new_key(tmp_path: Path) -> None:
    uri = save_run(f"{tmp_path}/run", {}, (), 1)
    assert "class_names" not in json.loads(Path(uri, "manifest.json").read_text())["info"]
    assert Predictor.load(uri).class_names == ("lesion",)


def test_names_that_do_not_fit_the_network(tmp_path: Path) -> None:
    save_run(f"{tmp_path}/run", {}, LABELS, 2)
    with pytest.raises(CorruptedError, match="expected a name for each of 2 classes, found 3"):
        Predictor.load(f"{tmp_path}/run")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a" * 65, "mean"])
def test_a_stored_name_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
    uri = save_run(f"{tmp_path}/run", {}, LABELS, 3)
    manifest = json.loads(Path(uri, "manifest.json").read_text())
    manifest["info"]["class_names"][0] = name
    del manifest["info_sha256"]
    Path(uri, "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StorageError):
        Predictor.load(uri)


# Files


def test_each_class_has_masks_and_maps_in_its_folder(
    predictor: Predictor, image: Image.Image, tmp_path: Path
) -> None:
    image.save(tmp_path / "x.png")
    writer = MaskWriter(
        f"{tmp_path}/out", ("probability", "uncertainty"), classes=predictor.class_names
    )
    (row,) = run_image_task(predictor, [f"{tmp_path}/x.png"], writer)
    expected = predictor(image)
    *members, _ = predictor.predict_members(image)
    names = {file.name for file in storage.list_files(f"{tmp_path}/out")}
    assert names == set(writer.file_names("x.png"))
    for i, (name, found) in enumerate(zip(LABELS, row["classes"], strict=True)):
        file = tmp_path / "out" / name / "x_segmentation.png"
        np.testing.assert_array_equal(np.asarray(Image.open(file)) > 0, expected.mask[i])
        probability = np.asarray(Image.open(tmp_path / f"out/probability/{name}/x_probability.png"))
        np.testing.assert_allclose(probability / 65535, expected.probability[i], atol=1e-5)
        assert (tmp_path / f"out/uncertainty/{name}/x_uncertainty.png").exists()
        stats = region_stats(expected[name], [member[name].mask for member in members])
        assert found["class_name"] == name
        assert (found["area"], found["disagreement"]) == (stats.area, stats.disagreement)
        assert (found["mask"], found["bytes"]) == (
            f"{name}/x_segmentation.png",
            file.stat().st_size,
        )


def test_a_label_image_by_hand() -> None:
    # Above 0.2 and 0.8. Where both are, 0.6 is half of the way from 0.2 to 1, and 0.95 three
    # quarters of that from 0.8; 0.84 is a fifth of it.
    first = [0.1, 0.6, 0.1, 0.6, 0.6]
    second = [0.1, 0.1, 0.9, 0.95, 0.84]
    probability = np.array([[first], [second]], np.float32)
    mask = probability > np.array([0.2, 0.8], np.float32)[:, None, None]
    prediction = Prediction(probability, mask, ("a", "b"))
    found = to_label_image(prediction, (0.2, 0.8))
    assert (found.dtype, found.tolist()) == (np.dtype(np.uint8), [[0, 1, 2, 2, 1]])


def test_a_label_image_has_one_file(
    predictor: Predictor, image: Image.Image, tmp_path: Path
) -> None:
    image.save(tmp_path / "x.png")
    writer = MaskWriter(f"{tmp_path}/out", classes=predictor.class_names, label_image=True)
    (row,) = run_image_task(predictor, [f"{tmp_path}/x.png"], writer)
    assert [file.name for file in storage.list_files(f"{tmp_path}/out")] == ["x_labels.png"]
    labels = np.asarray(Image.open(tmp_path / "out" / "x_labels.png"))
    np.testing.assert_array_equal(labels, to_label_image(predictor(image), THRESHOLDS))
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    assert {one["mask"] for one in row["classes"]} == {"x_labels.png"}
    assert find_images(str(tmp_path)) == [f"{tmp_path}/x.png"]  # label images are no photographs


@pytest.mark.parametrize("label_image", [False, True])
def test_the_table_has_a_row_for_each_class(
    label_image: bool, predictor: Predictor, image: Image.Image, tmp_path: Path
) -> None:
    images = [f"{tmp_path}/{name}.png" for name in "xy"]
    for name in images:
        image.save(name)
    task = MaskWriter(f"{tmp_path}/out", classes=LABELS, label_image=label_image)
    with PredictionTable(task, predictor) as table:
        for row in run_image_task(predictor, table.find_missing(images), task):
            table.add(row)
    rows = read_predictions(f"{tmp_path}/out")
    assert [(row.id, row.class_name) for row in rows] == [
        (i, name) for i in "xy" for name in LABELS
    ]
    with PredictionTable(task, predictor) as again:
        assert again.find_missing(images) == []
        assert again.get_rows(images) == rows
        storage.delete_file(f"{tmp_path}/out/{rows[-1].mask}")
        assert again.find_missing(images) == [images[1]]
    described = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert described["thresholds"] == dict(zip(LABELS, THRESHOLDS, strict=True))
    other = MaskWriter(task.out, classes=LABELS, label_image=not label_image)
    with pytest.raises(UsageError, match="label_image is"):
        PredictionTable(other, predictor)


# Exports and responses


@pytest.mark.timeout(300)
def test_an_export_names_the_classes(predictor: Predictor, tmp_path: Path) -> None:
    one = Predictor(predictor.members[:1], FRAME, THRESHOLDS, "three classes", LABELS)
    about = export(one, f"{tmp_path}/out", "torch", tolerance=1e-3)
    assert about["class_names"] == [*LABELS]
    assert about["class_thresholds"] == [*THRESHOLDS]
    assert about["id2label"] == {"0": "streaks", "1": "globules", "2": "cysts"}
    maps = load_exported(tmp_path / "out" / "model.pt2")(np.zeros((1, 3, 64, 64), np.float32))
    assert maps.shape == (1, 3, 64, 64)
    program = (tmp_path / "out" / "README.md").read_text()
    assert "['streaks', 'globules', 'cysts']" in program


def test_a_hub_folder_is_the_same_model(
    predictor: Predictor, image: Image.Image, tmp_path: Path
) -> None:
    export(predictor, f"{tmp_path}/out", "huggingface")
    found = Predictor.load(f"{tmp_path}/out")
    assert (found.class_names, found.thresholds) == (LABELS, THRESHOLDS)
    assert [member.thresholds for member in found.members] == [(0.5,) * 3] * 2
    np.testing.assert_array_equal(found(image).mask, predictor(image).mask)


def test_a_monai_bundle_names_the_channels(predictor: Predictor) -> None:
    configs = make_configs(describe(predictor, "monai-bundle"))
    metadata = json.loads(configs["configs/metadata.json"])
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == {"0": "streaks", "1": "globules", "2": "cysts"}
    assert output["num_channels"] == 3
    inference = json.loads(configs["configs/inference.json"])
    assert inference["threshold"] == [*THRESHOLDS]
    folders = [step.get("output_dir") for step in inference["postprocessing"]["transforms"]]
    assert folders[-3:] == [f"$@output_dir + '/{name}'" for name in LABELS]
    # MONAI evaluates the expression with the configuration's values in place of references.
    expression = inference["postprocessing"]["transforms"][0]["func"].removeprefix("$")
    above = eval(expression.replace("@threshold", str(inference["threshold"])), {"torch": torch})
    maps = torch.tensor(THRESHOLDS)[:, None, None] + torch.tensor([[[-0.01, 0.01]]])
    assert above(maps).tolist() == [[[0, 1]]] * 3


def test_responses_are_of_one_class(predictor: Predictor, image: Image.Image) -> None:
    maps = predictor.predict_proba(predictor.preprocess(image)[None])[0]
    segmentation = ImageSegmentation(predictor, maps, image.size, "")
    expected = predictor(image)
    for name, threshold in zip(LABELS, THRESHOLDS, strict=True):
        found = segmentation.of_class(name)
        np.testing.assert_array_equal(found.mask(), expected[name].mask)
        view = found.to_view()
        assert (view.threshold, view.area) == (threshold, expected[name].mask.sum())
        assert threshold in view.thresholds
        assert [member.threshold for member in view.members] == [0.5, 0.5]
        np.testing.assert_array_equal(found.mask(0.45), expected[name].probability > 0.45)
    with pytest.raises(UsageError, match="expected one of streaks"):
        segmentation.of_class("lesion")

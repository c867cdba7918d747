"""Several classes by the commands, from a synthetic archive to masks, scores and a report."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segan.data.synthetic_classes import ATTRIBUTES, LABELS
from segan.runs.run import Run
from tests.cli.test_cli import TINY_OVERRIDES, error_message, run_cli

CLASSES = {"attributes": tuple(ATTRIBUTES), "labels": LABELS}
IMAGES = {"attributes": "ISIC2018_Task1-2_Test_Input", "labels": "ISIC-2017_Test_v2_Data"}


def run_json(*words: object) -> Any:
    done = run_cli(*words, "--json")
    assert done.exit_code == 0, done.stderr
    return done.json


def train(run: Path, records: Path, classes: int, *overrides: str) -> Any:
    fixed = [f"data.records={records}", f"network.classes={classes}", "evaluation.report=false"]
    return run_json("train", run, *fixed, *TINY_OVERRIDES, *overrides, "--local")


@pytest.fixture(scope="module", params=["attributes", "labels"])
def workspace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the kind's name, with an archive, its records and a run."""
    root = tmp_path_factory.mktemp("classes") / request.param
    counts = ["--train", 8, "--validation", 3, "--test", 3, "--short-side", 64]
    done = run_cli("synth", root / "archive", *counts, "--masks", request.param)
    assert done.exit_code == 0, done.stderr
    frame = ["--width", 72, "--height", 64]
    manifest = run_json("ingest", root / "archive", root / "records", *frame, "--local")
    names = CLASSES[request.param]
    assert (manifest["classes"], manifest["class_names"]) == (len(names), [*names])
    train(root / "run", root / "records", len(names))
    return root


def class_names(workspace: Path) -> tuple[str, ...]:
    return CLASSES[workspace.name]


def test_a_training_needs_the_records_number_of_classes(workspace: Path, tmp_path: Path) -> None:
    names = class_names(workspace)
    records = f"data.records={workspace}/records"
    assert error_message(2, "train", tmp_path / "run", "--local", records, *TINY_OVERRIDES) == (
        f"network.classes 1: the records' masks have {len(names)} ({', '.join(names)}); use "
        f"network.classes={len(names)}"
    )


def test_a_run_keeps_the_scores_of_each_class(workspace: Path) -> None:
    names, run = class_names(workspace), Run(f"{workspace}/run")
    checkpoint = run.best_checkpoint()
    assert checkpoint is not None
    assert checkpoint.labels == names
    (line,) = [line for line in run.metrics() if line["kind"] == "epoch"]
    for key in ("class_thresholds", "class_accuracy", "class_dice", "class_jaccard"):
        assert set(line[key]) == set(names), key
        assert checkpoint.info.metrics[key] == line[key]
    assert line["jaccard"] == pytest.approx(np.mean([*line["class_jaccard"].values()]))
    assert checkpoint.thresholds == tuple(line["class_thresholds"][name] for name in names)


def test_a_run_is_shown_with_its_classes(workspace: Path) -> None:
    done = run_cli("runs", "show", workspace / "run")
    assert done.exit_code == 0
    assert "by class, at epoch 1" in done.stdout
    assert all(name in done.stdout for name in class_names(workspace))


def test_an_evaluation_has_the_scores_of_each_class(workspace: Path, tmp_path: Path) -> None:
    names, run = class_names(workspace), workspace / "run"
    words = ["evaluate", run, run, workspace / "archive", "--local", "--csv", tmp_path / "s.csv"]
    found = run_json(*words)
    first, second = found["models"]
    assert first["scores"] == second["scores"]
    assert set(first["classes"]) == set(first["thresholds"]) == set(names)
    jaccards = [scores["jaccard"] for scores in first["classes"].values()]
    assert first["jaccard"] == pytest.approx(np.mean(jaccards))
    bounds = first["intervals"]["classes"][names[0]]["jaccard"]
    assert 0 <= bounds["low"] <= jaccards[0] <= bounds["high"] <= 1
    assert found["differences"]["classes"][names[0]]["jaccard"]["mean"] == 0
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [row["class"] for row in rows] == [*names] * 6
    table = run_cli("evaluate", run, workspace / "archive", "--local").stdout
    assert all(name in table for name in (*names, "mean over classes"))


def test_masks_of_each_class_are_written(workspace: Path, tmp_path: Path) -> None:
    names, images = class_names(workspace), workspace / "archive" / IMAGES[workspace.name]
    rows = run_json("predict", workspace / "run", images, tmp_path / "masks", "--local")
    assert len(rows) == 3 * len(names)
    for row in rows:
        assert row["mask"].startswith(f"{row['class_name']}/")
        mask = np.asarray(Image.open(tmp_path / "masks" / row["mask"]))
        assert set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).sum() == row["area"]
    words = ["predict", workspace / "run", images, tmp_path / "labels", "--local", "--label-image"]
    done = run_cli(*words)
    assert "3 label images written" in done.stderr + done.stdout
    files = sorted(path.name for path in (tmp_path / "labels").glob("*.png"))
    assert files == [f"{row['id']}_labels.png" for row in rows[:: len(names)]]


def test_the_report_has_each_class(workspace: Path, tmp_path: Path) -> None:
    names = class_names(workspace)
    found = run_json("report", workspace / "run", "--out", tmp_path / "report.html")
    assert tuple(one["name"] for one in found["result"]["classes"]) == names
    page = (tmp_path / "report.html").read_text()
    assert all(page.count(name) >= 3 for name in names)  # table, chart and legend of the cases
    assert "every pixel" in page


def test_an_ensemble_has_a_threshold_for_each_class(workspace: Path, tmp_path: Path) -> None:
    names = class_names(workspace)
    members = [workspace / "run"]
    for seed in (1, 2):
        members.append(tmp_path / f"run{seed}")
        train(members[-1], workspace / "records", len(names), f"training.seed={seed}")
    options = [word for member in members for word in ("--member", member)]
    found = run_json("ensemble", "build", *options, "--out", tmp_path / "ensemble")
    assert tuple(found["class_names"]) == names
    assert set(found["class_scores"]) == set(names)
    assert len(found["class_thresholds"]) == len(names)
    card = (tmp_path / "ensemble" / "card.md").read_text()
    assert all(f"| {name} |" in card for name in names)
    packed = run_json(
        "ensemble",
        "pack",
        tmp_path / "ensemble",
        tmp_path / "packed",
        "--half",
        "--archive",
        workspace / "archive",
    )
    assert tuple(packed["class_names"]) == names
    scores = run_json("evaluate", tmp_path / "packed", workspace / "archive", "--local")
    assert len(scores["members"]) == 3
    assert set(scores["members"][0]["thresholds"]) == set(names)
    assert set(scores["members"][0]["classes"]) == set(names)


def test_other_classes_are_refused(workspace: Path, tmp_path: Path) -> None:
    """A model is not scored against the masks of other classes."""
    other = tmp_path / "classes.yaml"
    first = class_names(workspace)[0]
    if workspace.name == "labels":
        other.write_text('mask: "{id}_labels.png"\nclasses: {a: 1, b: 2, c: 3}\n')
    else:
        other.write_text(f'classes:\n  {first}: "{{id}}_attribute_{first}.png"\n')
    message = error_message(
        2, "evaluate", workspace / "run", workspace / "archive", "--local", "--classes", other
    )
    assert "or describe others with --classes" in message


def test_one_class_has_no_label_image(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(image)
    message = error_message(2, "predict", "isic2017", image, tmp_path / "out", "--label-image")
    assert message == "isic2017: --label-image needs several classes, found one"


def test_a_synthetic_archive_describes_its_classes(workspace: Path) -> None:
    assert (workspace / "archive" / "classes.yaml").exists()
    manifest = json.loads((workspace / "records" / "manifest.json").read_text())
    assert manifest["num_rejects"] == 0

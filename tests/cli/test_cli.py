"""The command line: a pipeline from synthetic pairs to masks, and the messages for wrong usage."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from segan.cli.main import app, main
from segan.config import Config, iter_fields, load_config
from segan.data.archive.reader import open_archive
from tests.drivers import Driver


def list_commands(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by its words, those of groups too."""
    found = {}
    for name, command in group.commands.items():
        words = f"{before}{name}"
        found |= (
            list_commands(command, f"{words} ")
            if hasattr(command, "commands")
            else {words: command}
        )
    return found


COMMANDS = list_commands(typer.main.get_command(app))
TINY_OVERRIDES = [
    "network.width=2",
    "training.batch_size=4",
    "training.epochs=1",
    "augment.crop=64",
    "cluster.threads_per_worker=1",
]


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


def run_cli(*words: object) -> CommandResult:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return CommandResult(code, out.getvalue(), err.getvalue())


def error_message(code: int, *words: object) -> str:
    """The one line on stderr of a command that fails at once."""
    done = run_cli(*words)
    assert (done.exit_code, done.stdout) == (code, "")
    assert re.fullmatch(r"segan: .+\n", done.stderr), done.stderr
    return done.stderr.removeprefix("segan: ").rstrip("\n")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of the pipeline, and each command's stdout in <command>.json."""
    root = tmp_path_factory.mktemp("workspace")
    archive, run = root / "archive", root / "run"
    train = ["train", run, f"data.records={root}/records", *TINY_OVERRIDES]
    counts = ["--train", 8, "--validation", 2, "--test", 3, "--short-side", 64]
    assert run_cli("synth", archive, *counts).exit_code == 0
    for words in (
        ["ingest", archive, root / "records", "--width", 72, "--height", 64],
        train,
        ["evaluate", run, archive, "--split", "test"],
        ["predict", run, archive / "ISIC-2017_Test_v2_Data", root / "masks"],
    ):
        done = run_cli(*words, "--local", "--json")
        assert done.exit_code == 0, done.stderr
        (root / f"{words[0]}.json").write_text(done.stdout)
    return root


def read_output(workspace: Path, command: str) -> Any:
    """stdout of a command of the pipeline, which is JSON alone."""
    return json.loads((workspace / f"{command}.json").read_text())


def read_mask(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path)) > 0


# Writers

WRITERS = (
    "synth OUT --train 1 --short-side 64",
    "ingest WORKSPACE/archive OUT --local",
    "train OUT --local data.records=WORKSPACE/records",
    "predict WORKSPACE/run WORKSPACE/archive/ISIC-2017_Test_v2_Data OUT --local",
    "export WORKSPACE/run OUT --format safetensors",
    "report WORKSPACE/run --out OUT/page.html",
    "checkpoints download WORKSPACE/run OUT",
    "download isic2017 --out OUT --mirror http://127.0.0.1:9",
)


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_has_one_writer(command: str, workspace: Path, tmp_path: Path) -> None:
    """Another process holds the place; nothing is written there."""
    out, other = tmp_path / "out", Driver.start()
    place = out / "page.html.lock" if "report" in command else out
    words = command.replace("WORKSPACE", str(workspace)).replace("OUT", str(out)).split()
    try:
        assert other.hold(str(place)) == "held"
        done = run_cli(*words, *(TINY_OVERRIDES if words[0] == "train" else []))
        assert (done.exit_code, done.stdout) == (2, ""), done.stderr
        assert f"segan: {place}: locked by process {other.process.pid} on " in done.stderr
        assert [p.name for p in out.rglob("*") if p.is_file()] == ["lease.json"]
    finally:
        other.kill()


# The pipeline


def remove_test_file(archive: Path, number: int, mask: bool) -> str:
    """Deletes the image or the mask of a pair of the test split; returns its id."""
    pair = open_archive(str(archive)).split("test")[number]
    assert pair.mask
    Path(pair.mask if mask else pair.image).unlink()
    return pair.id


def test_scores_over_a_part_say_what_is_left_out(workspace: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(workspace / "archive", archive)
    left_out = [remove_test_file(archive, 0, mask=True), remove_test_file(archive, 0, mask=False)]
    command = ["evaluate", workspace / "run", archive, "--local"]
    done = run_cli(*command, "--json")
    assert done.exit_code == 0
    assert (done.json["num_images"], done.json["num_rejects"]) == (1, 2)
    assert all(any(name in row["name"] for row in done.json["rejects"]) for name in left_out)
    for text in (done.stderr, run_cli(*command).stderr):
        assert text.count("not scored: ") == 2
        assert "2 files of test or of no known split are not scored; the scores are" in text


def test_a_whole_split_has_no_rejects(workspace: Path) -> None:
    found = read_output(workspace, "evaluate")
    assert (found["num_images"], found["num_rejects"], found["rejects"]) == (3, 0, [])


@pytest.mark.parametrize(
    "words",
    [
        ["ingest", "{workspace}/archive", "", "--local"],
        ["predict", "{workspace}/run", "{workspace}/archive/ISIC-2017_Test_v2_Data", "", "--local"],
        ["predict", "{workspace}/run", "", "out", "--local"],
        ["synth", "", "--train", "1"],
        ["runs", "ls", ""],
        ["runs", "show", " "],
        ["checkpoints", "ls", ""],
        ["checkpoints", "verify", ""],
        ["checkpoints", "download", "{workspace}/run", ""],
        ["export", "{workspace}/run", ""],
        ["evaluate", "", "{workspace}/archive", "--local"],
        ["train", "", "--local", "data.records={workspace}/records", "network.width=2"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_empty_place_is_refused(
    workspace: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of an unset variable; it would be the current folder."""
    monkeypatch.chdir(tmp_path)
    message = error_message(2, *(word.format(workspace=workspace) for word in words))
    assert "found nothing" in message
    assert list(tmp_path.iterdir()) == []


def test_images_that_cannot_be_read_or_named_are_left_out_alone(
    workspace: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("good", "x" * 240):
        Image.new("RGB", (70, 64)).save(folder / f"{name}.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")
    (folder / "unreadable.png").symlink_to("unreadable.png")
    done = run_cli("predict", workspace / "run", folder, tmp_path / "out", "--local")
    assert done.exit_code == 1
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["good_segmentation.png"]
    assert f"{'x' * 240}.png: its mask's name has 257 bytes" in done.stderr
    assert "images could not be read" in done.stderr.splitlines()[-1]


def test_ingest_reports_the_records(workspace: Path) -> None:
    manifest = read_output(workspace, "ingest")
    rows = {
        split: sum(s["num_rows"] for s in shards) for split, shards in manifest["splits"].items()
    }
    assert rows == {"train": 8, "validation": 2, "test": 3}
    assert (manifest["width"], manifest["height"], manifest["num_rejects"]) == (72, 64, 0)
    assert manifest == json.loads((workspace / "records" / "manifest.json").read_text())


def test_train_reports_its_best_checkpoint(workspace: Path) -> None:
    best = read_output(workspace, "train")
    assert best["checkpoint"] == f"{workspace}/run/checkpoints/epoch_00001"
    assert (Path(best["checkpoint"]) / "segmentor.safetensors").is_file()
    assert 0 <= best["jaccard"] <= best["dice"] <= 1
    assert "jaccard_curve" not in best


def test_the_summary_is_the_mean_of_the_rows(workspace: Path) -> None:
    found = read_output(workspace, "evaluate")
    assert (found["num_images"], found["split"]) == (3, "test")
    assert [row["id"] for row in found["scores"]] == [f"ISIC_00000{i}" for i in (10, 11, 12)]
    for name in ("accuracy", "dice", "jaccard"):
        assert found[name] == pytest.approx(np.mean([row[name] for row in found["scores"]]))
    assert found["threshold"] == read_output(workspace, "train")["threshold"]


def test_a_mask_has_the_images_size_and_the_challenges_name(workspace: Path) -> None:
    rows = read_output(workspace, "predict")
    assert sorted(path.name for path in (workspace / "masks").iterdir()) == [
        *(f"ISIC_00000{i}_segmentation.png" for i in (10, 11, 12)),
        "predictions.csv",
        "predictions.json",
    ]
    for row in rows:
        mask = Image.open(workspace / "masks" / row["mask"])
        image = Image.open(workspace / "archive" / "ISIC-2017_Test_v2_Data" / f"{row['id']}.jpg")
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", image.size)
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
        assert row["area_fraction"] == pytest.approx((np.asarray(mask) == 255).mean())
        assert not row["error"]


def test_the_scores_are_those_of_the_masks_written(workspace: Path) -> None:
    scores = {row["id"]: row for row in read_output(workspace, "evaluate")["scores"]}
    for pair in open_archive(str(workspace / "archive")).split("test"):
        assert pair.mask
        found = read_mask(workspace / "masks" / f"{pair.id}_segmentation.png")
        truth = read_mask(pair.mask)
        both, either = (found & truth).sum(), (found | truth).sum()
        assert scores[pair.id]["jaccard"] == pytest.approx(both / either)
        assert scores[pair.id]["accuracy"] == pytest.approx((found == truth).mean())


def test_without_json_a_table_is_printed(workspace: Path) -> None:
    done = run_cli(
        "evaluate", workspace / "run", workspace / "archive", "--local", "--split", "validation"
    )
    assert done.exit_code == 0
    assert all(word in done.stdout for word in ("validation", "accuracy", "dice", "jaccard"))
    assert "scoring 2/2" in done.stderr


def test_two_models_are_compared_by_image(workspace: Path, tmp_path: Path) -> None:
    run, archive, table = workspace / "run", workspace / "archive", tmp_path / "scores.csv"
    words = ["evaluate", run, run / "checkpoints" / "best", archive, "--local", "--csv", table]
    found = run_cli(*words, "--json").json
    first, second = found["models"]
    assert first["scores"] == second["scores"] == read_output(workspace, "evaluate")["scores"]
    for name, interval in first["intervals"].items():
        assert interval["low"] <= first[name] <= interval["high"]
        assert found["differences"][name] == {"mean": 0, "low": 0, "high": 0}
    lines = table.read_text().splitlines()
    assert len(lines) == 1 + 2 * first["num_images"]
    assert lines[0].startswith("model,id,accuracy,dice,jaccard,sensitivity,specificity,")
    assert "paired by image" in run_cli(*words).stdout
    assert "found 3" in error_message(2, "evaluate", run, run, run, archive)


def test_a_threshold_is_taken_instead_of_the_models(workspace: Path) -> None:
    words = [
        "evaluate",
        workspace / "run",
        workspace / "archive",
        "--local",
        "--json",
        "--threshold",
    ]
    everything, nothing = run_cli(*words, 0).json, run_cli(*words, 1).json
    assert (everything["threshold"], nothing["threshold"]) == (0, 1)
    assert nothing["dice"] == 0
    assert everything["accuracy"] == pytest.approx(1 - nothing["accuracy"])


def test_a_checkpoint_is_a_model_too(workspace: Path, tmp_path: Path) -> None:
    image = workspace / "archive" / "ISIC-2017_Test_v2_Data" / "ISIC_0000010.jpg"
    checkpoint = workspace / "run" / "checkpoints" / "epoch_00001"
    assert run_cli("predict", checkpoint, image, tmp_path, "--local").exit_code == 0
    np.testing.assert_array_equal(
        read_mask(tmp_path / "ISIC_0000010_segmentation.png"),
        read_mask(workspace / "masks" / "ISIC_0000010_segmentation.png"),
    )


def test_a_finished_run_stays_as_it_is(workspace: Path) -> None:
    words = [
        "train",
        workspace / "run",
        f"data.records={workspace}/records",
        *TINY_OVERRIDES,
        "--local",
        "--json",
    ]
    assert run_cli(*words).json == read_output(workspace, "train")
    assert "network.width is 2, expected 4" in error_message(2, *words, "network.width=4")


def test_the_same_seed_gives_the_same_archive(workspace: Path, tmp_path: Path) -> None:
    assert (
        run_cli(
            "synth", tmp_path, "--train", 1, "--validation", 0, "--test", 0, "--short-side", 64
        ).exit_code
        == 0
    )
    name = "ISIC-2017_Training_Data/ISIC_0000000.jpg"
    assert (tmp_path / name).read_bytes() == (workspace / "archive" / name).read_bytes()


# Bad input


def test_an_unreadable_image_fails_and_the_others_are_written(
    workspace: Path, tmp_path: Path
) -> None:
    good = workspace / "archive" / "ISIC-2017_Test_v2_Data" / "ISIC_0000010.jpg"
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for name in ("a.jpg", "c.jpg"):
        (images / name).write_bytes(good.read_bytes())
    (images / "b.jpg").write_bytes(good.read_bytes()[:500])
    done = run_cli("predict", workspace / "run", images, masks, "--local", "--json")
    assert done.exit_code == 1
    assert "not segmented: b.jpg: damaged image" in done.stderr
    assert done.stderr.endswith("segan: 1 of 3 images could not be read\n")
    assert [bool(row["error"]) for row in done.json] == [False, True, False]
    assert sorted(path.name for path in masks.glob("*.png")) == [
        "a_segmentation.png",
        "c_segmentation.png",
    ]


def test_predicting_again_does_what_is_missing(workspace: Path, tmp_path: Path) -> None:
    images = workspace / "archive" / "ISIC-2017_Test_v2_Data"
    words = ["predict", workspace / "run", images, tmp_path, "--local", "--json"]
    first = run_cli(*words)
    assert "exist already" not in first.stderr
    changed = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    cut, gone, kept = sorted(changed)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    again = run_cli(*words)
    assert "1 of 3 masks exist already" in again.stderr
    assert again.json == first.json
    assert [path.stat().st_mtime_ns != changed[path] for path in (cut, gone, kept)] == [1, 1, 0]
    assert "3 of 3 masks exist already\n0 masks written" in run_cli(*words[:-1]).stderr
    said = error_message(2, *words, "--threshold", 0.999)
    assert f"{tmp_path}: contains masks of " in said
    assert ", expected 0.999; use --overwrite" in said
    assert run_cli(*words, "--threshold", 0.999, "--overwrite").json != first.json


def test_export_reports_what_it_wrote(workspace: Path, tmp_path: Path) -> None:
    words = ["export", workspace / "run", tmp_path, "--threshold", 0.3, "--format", "safetensors"]
    about = run_cli(*words, "--json").json
    assert about == json.loads((tmp_path / "model.json").read_text())
    assert (about["threshold"], about["frame"]) == (0.3, {"width": 72, "height": 64})
    assert (tmp_path / about["file"]).is_file()
    assert "weights bitwise equal" in run_cli(*words).stderr


def test_an_uncertainty_map_needs_members(workspace: Path, tmp_path: Path) -> None:
    words = ["predict", workspace / "run", workspace / "archive", tmp_path, "--local"]
    assert "--uncertainty needs an ensemble" in error_message(2, *words, "--uncertainty")


@pytest.mark.parametrize("second", ["a.png", "deeper/a.jpg"])
def test_no_mask_is_written_over_another(workspace: Path, tmp_path: Path, second: str) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("a.jpg", second):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(images / name)
    done = run_cli("predict", workspace / "run", images, masks, "--local")
    written = len(list(masks.rglob("*.png"))) if masks.exists() else 0
    assert done.exit_code != 0 or written == 2


VARIANTS = "ablation.variants={paper: {}, dice: {loss.dice_weight: 1}}"


def test_an_ablation_is_a_report_and_then_tables(workspace: Path, tmp_path: Path) -> None:
    words = [
        "ablate",
        tmp_path / "study",
        "--local",
        f"data.records={workspace}/records",
        *TINY_OVERRIDES,
    ]
    words += ["ablation.seeds=1", VARIANTS]
    report = run_cli(*words, "--json")
    assert report.exit_code == 0, report.stderr
    assert [row["variant"] for row in report.json["variants"]] == ["paper", "dice"]
    assert [row["num_ended"] for row in report.json["variants"]] == [1, 1]
    assert "dice-seed0  epoch 1  Jaccard 0." in report.stderr
    shown = run_cli(*words)
    assert shown.exit_code == 0
    assert "minus paper" in shown.stdout
    assert f"{report.json['variants'][1]['jaccard']['mean']:.4f}" in shown.stdout
    assert "epoch 1" not in shown.stderr  # nothing was trained again


def test_an_invalid_variant_is_refused_at_once(workspace: Path, tmp_path: Path) -> None:
    words = ["ablate", tmp_path / "study", "--local", f"data.records={workspace}/records"]
    assert error_message(2, *words).startswith("ablation.variants: expected variants to compare")
    wrong = "ablation.variants={paper: {}, dice: {loss.dice: 1}}"
    assert error_message(2, *words, wrong).startswith(
        "ablation dice: configuration loss.dice: unknown"
    )
    assert not (tmp_path / "study").exists()


def test_too_many_rejects_stop_the_job(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "ISIC-2017_Training_Data").mkdir()
    (tmp_path / "ISIC-2017_Training_Data" / "a.jpg").write_bytes(b"")
    done = run_cli("ingest", tmp_path, tmp_path / "records", "--local")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"segan: {tmp_path}: 1 of 1 pairs rejected")
    assert not (tmp_path / "records").exists()


def test_records_are_not_replaced_without_overwrite(workspace: Path) -> None:
    words = ["ingest", workspace / "archive", workspace / "records", "--local", "--width", 90]
    assert "existing records have 72 x 64 pixels, expected 90 x 135" in error_message(2, *words)


def test_overwriting_writes_the_same_records_again(workspace: Path, tmp_path: Path) -> None:
    words = ["ingest", workspace / "archive", tmp_path, "--local", "--json"]
    first = run_cli(*words).json
    assert run_cli(*words, "--overwrite").json == first


@pytest.mark.parametrize("command", ["ingest", "evaluate", "predict"])
def test_an_empty_folder_has_no_images(workspace: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    words: list[object] = [tmp_path / "empty", tmp_path / "out"]
    if command != "ingest":
        words = [workspace / "run", *words[: 1 if command == "evaluate" else 2]]
    said = error_message(1, command, *words, "--local")
    assert said.startswith(f"{tmp_path}/empty: no images found; expected ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["evaluate", "RUN", "ARCHIVE", "--split", "tset"],
            "no pairs in split 'tset'; splits with pairs",
        ),
        (["evaluate", "NONE", "ARCHIVE"], "neither a checkpoint nor a run with a complete one"),
        (["predict", "NONE", "ARCHIVE", "OUT"], "neither a checkpoint nor a run"),
        (["predict", "RUN", "NONE.jpg", "OUT"], "NONE.jpg: not found"),
        (["predict", "RECORDS", "ARCHIVE", "OUT"], "RECORDS"),
        (["train", "OUT", "data.records=NONE"], "no records found (no manifest.json)"),
        (["train", "OUT", "data.records=RUN"], "no records found"),
    ],
)
def test_a_missing_input_is_one_line(
    workspace: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    places = {
        "RUN": workspace / "run",
        "ARCHIVE": workspace / "archive",
        "RECORDS": workspace / "records",
    }
    places |= {"NONE": tmp_path / "NONE", "OUT": tmp_path / "out"}

    def put(text: str) -> str:
        return re.sub("|".join(places), lambda match: str(places[match[0]]), text)

    assert put(said) in error_message(1, *map(put, words), "--local")


# Wrong usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bogus"], "--bogus"),
        (["bogus"], "bogus"),
        (["train"], "Missing argument 'RUN'"),
        (["train", "run", "--bogus"], "--bogus"),
        (["synth", "out", "--train", "many"], "--train"),
        (["synth", "out", "--train", "-1"], "greater than or equal to 0"),
        (["synth", "out", "--short-side", "8"], "greater than or equal to 32"),
        (["synth", "gs://bucket/x"], "expected a local path or s3://bucket/prefix"),
        (["ingest", "a", "b", "--max-rejects", "2"], "less than or equal to 1"),
        (["evaluate", "r", "a", "--threshold", "1.5"], "less than or equal to 1"),
        (["train", "run", "width=8"], "expected section.key=value, as in network.width=8"),
        (["train", "run", "netwrk.width=8"], "nearest known one is network"),
        (["train", "run", "network.widht=8"], "nearest known one is network.width"),
        (["train", "run", "network.width=0"], "greater than or equal to 1, found 0"),
        (["train", "run", "--config", "none.yaml"], "none.yaml: cannot be read (No such file"),
        (["train", "run", "--local"], "data.records: expected the URI of records"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in error_message(2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_crop_larger_than_the_frames_is_refused(workspace: Path, tmp_path: Path) -> None:
    words = ["train", tmp_path, f"data.records={workspace}/records", "--local"]
    said = error_message(2, *words, "training.batch_size=4")
    assert said.startswith("augment.crop 128: the records' frames are 72 x 64 pixels; use a crop")
    assert "needs 25 images per step, but split 'train' has 8" in error_message(
        2, *words, "augment.crop=64"
    )
    assert list(tmp_path.iterdir()) == []


def test_no_command_shows_the_commands_and_no_error() -> None:
    done = run_cli()
    assert done.exit_code == 2
    assert all(name.split()[0] in done.stdout for name in COMMANDS)
    assert done.stderr == ""


def test_debug_adds_the_traceback() -> None:
    done = run_cli("train", "run", "--local", "--debug", "network.width=0")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("segan: configuration network.width: ")


class BrokenError(Exception):
    """An error that no part of segan raises on purpose."""


def break_config_command(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    def fail(*_: object) -> None:
        raise BrokenError(message)

    monkeypatch.setattr("segan.config.load_config", fail)


def test_an_internal_error_is_one_line_with_the_place_of_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_config_command(monkeypatch, "the head did not start\nmany lines of log")
    message = error_message(1, "config")
    match = re.fullmatch(
        r"internal error: BrokenError: the head did not start; traceback in (\S+); "
        r"run again with --debug to see it",
        message,
    )
    assert match, message
    traceback = Path(match[1]).read_text()
    assert traceback.startswith("Traceback")
    assert "many lines of log" in traceback
    Path(match[1]).unlink()


def test_a_cause_on_the_second_line_is_part_of_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    break_config_command(monkeypatch, "controller error:\n  timed out waiting for 2 workers\nmore")
    message = error_message(1, "config")
    start = "internal error: BrokenError: controller error: timed out waiting for 2 workers; "
    assert message.startswith(f"{start}traceback in ")
    Path(message.split("traceback in ")[1].split(";")[0]).unlink()


def test_debug_shows_the_traceback_of_an_internal_error(monkeypatch: pytest.MonkeyPatch) -> None:
    break_config_command(monkeypatch, "")
    done = run_cli("config", "--debug")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("segan: internal error: BrokenError: no message\n")


def test_the_version_is_that_of_the_package() -> None:
    assert run_cli("--version") == CommandResult(0, f"segan {version('segan')}\n", "")


def test_the_help_lists_the_exit_codes() -> None:
    text = " ".join(run_cli("--help").stdout.split())
    for code in ("0 success", "1 failure", "2 wrong usage", "130 interrupted", "143 a training"):
        assert code in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_debug(name: str) -> None:
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert "--debug" in options


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_valid_example(name: str) -> None:
    done = run_cli(*name.split(), "--help")
    assert (done.exit_code, done.stderr) == (0, "")
    example = COMMANDS[name].epilog
    assert example
    assert example in " ".join(done.stdout.split())
    assert example.startswith(f"segan {name} ")
    COMMANDS[name].make_context(name, shlex.split(example)[1 + len(name.split()) :])


def test_every_key_is_shown_with_its_value() -> None:
    shown = run_cli("config", "network.width=8", "--json")
    assert shown.exit_code == 0
    assert shown.json == load_config(None, ["network.width=8"]).model_dump(mode="json")
    table = run_cli("config").stdout
    assert [key for key, _ in iter_fields(Config) if key not in table] == []


# As a program


SCRIPT = [str(Path(sys.executable).parent / "segan")]
MODULE = [sys.executable, "-m", "segan"]


def run_program(
    *words: object, program: Sequence[str] = SCRIPT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def test_the_program_gives_its_exit_code_and_streams(workspace: Path) -> None:
    for program in (SCRIPT, MODULE):
        shown = run_program("--help", program=program)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "Usage: segan" in shown.stdout
    wrong = run_program("train", "run", "netwrk.width=8")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert (
        wrong.stderr
        == "segan: configuration netwrk: unknown key; the nearest known one is network\n"
    )


def test_the_shell_completes_commands() -> None:
    completion = {"_SEGAN_COMPLETE": "complete_bash", "COMP_WORDS": "segan ab", "COMP_CWORD": "1"}
    done = run_program(program=MODULE, **completion)
    assert (done.returncode, done.stdout.split()) == (0, ["ablate"])


def test_the_programs_json_is_all_of_stdout(workspace: Path) -> None:
    done = run_program("evaluate", workspace / "run", workspace / "archive", "--local", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == read_output(workspace, "evaluate")

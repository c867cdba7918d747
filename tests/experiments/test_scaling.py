"""The scaling study from records to plot, with real trainings of tiny networks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments.scaling import app, read_points, study_config
from experiments.scaling_law import Point
from segan import storage
from segan.cli.main import main
from segan.config import parse_config
from segan.errors import UsageError

SIZES = ["--widths", "1,2,3", "--epochs", "1,2,3", "--recipe", "paper", "--local"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_from_records_to_plot(
    records: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine trainings, a law and a plot; again, it trains nothing and writes the same bytes."""
    command = [str(tmp_path), f"data.records={records}", "augment.crop=64", *SIZES]
    command += ["training.batch_size=4", "cluster.threads_per_worker=1"]
    assert main(command, app) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "| recipe | w | 1 epochs | 2 epochs | 3 epochs |"
    assert [line.split(" | ")[1] for line in table[2:]] == ["1", "2", "3", "64, 300 epochs"]
    points = read_points(str(tmp_path / "paper"))
    sizes = {(point.width, point.epochs) for point in points}
    assert sizes == {(width, epochs) for width in (1, 2, 3) for epochs in (1, 2, 3)}
    (result,) = storage.read_json(str(tmp_path / "scaling-paper.json"))
    assert [Point(**point) for point in result["points"]] == points
    assert result["forecast"]["low"] <= result["forecast"]["mean"] <= result["forecast"]["high"]
    files = [tmp_path / f"scaling-paper.{kind}" for kind in ("json", "svg")]
    before = [file.read_bytes() for file in files]
    trained = sorted((tmp_path / "paper").rglob("metrics.jsonl"))
    changed = [file.stat().st_mtime_ns for file in trained]
    assert len(trained) == 9
    assert main(command, app) == 0
    assert [file.read_bytes() for file in files] == before
    assert [file.stat().st_mtime_ns for file in trained] == changed


def test_the_recipes_differ_in_their_training_only() -> None:
    trees = {name: study_config(name, [4, 2], [3], 2, []) for name in ("paper", "best")}
    for tree in trees.values():
        config = parse_config(json.loads(json.dumps(tree)))
        assert list(config.ablation.variants) == ["w2-e3", "w4-e3"]
        assert config.ablation.baseline == "w2-e3"
        assert config.logistic.stretch_to_run
        assert not config.evaluation.tta
    assert trees["paper"]["loss"] != trees["best"]["loss"]


@pytest.mark.parametrize("widths", ["", "2,x", "0,2", "2.5"])
def test_what_is_no_number_is_refused(
    widths: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--widths", widths, "--local"], app) == UsageError.exit_code
    message = rf"segan: --widths {re.escape(repr(widths))}: expected numbers above 0, as in 2,4,8"
    assert re.search(message, capsys.readouterr().err)

"""The curves of stored runs, as a table and a plot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.curves import app, format_groups
from segan.cli.main import main
from segan.errors import UsageError
from segan.runs.run import Run
from tests.report.tiny_study import TinyStudy


def test_the_table_by_hand() -> None:
    groups = {"a": [[(1, 0.5), (2, 0.75), (3, 0.7)], [(1, 0.25), (2, 0.6)]], "b": [[(4, 0.125)]]}
    rows = [line.strip("|").split("|") for line in format_groups(groups).splitlines()[2:]]
    cells = [[cell.strip() for cell in row] for row in rows]
    # Best 0.75 and 0.6, mean 0.675; last 0.7 and 0.6, mean 0.65.
    assert cells[0] == ["a", "3", "0.750, 0.600", "0.675", "0.650"]
    assert cells[1] == ["b", "4", "0.125", "0.125", "0.125"]


def test_of_stored_runs(
    tiny_study: TinyStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = tiny_study.runs[0]
    first = [line["jaccard"] for line in Run(uri).validations()]
    shutil.copytree(uri, tmp_path / "again")
    out = tmp_path / "curves.svg"
    command = [str(out), f"first={uri},{tmp_path}/again", f"other={tiny_study.runs[1]}"]
    assert main(command, app) == 0
    assert f"{max(first):.3f}, {max(first):.3f}" in capsys.readouterr().out
    drawn = out.read_bytes()
    assert drawn.startswith(b"<?xml")
    assert main(command, app) == 0
    assert out.read_bytes() == drawn


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["runs/best0"], "'runs/best0': expected NAME=RUN,RUN,..."),
        (["a=x,"], "'a=x,': expected"),
        (["=x"], "'=x': expected"),
    ],
)
def test_what_is_no_group_is_refused(
    groups: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out.svg"), *groups], app) == UsageError.exit_code
    assert message in capsys.readouterr().err


def test_a_folder_without_a_run_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "out.svg"), f"a={tmp_path}/none"], app) != 0
    assert f"{tmp_path}/none: no validated epoch yet" in capsys.readouterr().err

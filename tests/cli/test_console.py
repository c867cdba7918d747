"""Messages on stderr, results on stdout."""

import json
import os
import re
import subprocess
import sys

import pytest

from segan.cli.console import (
    TrainingDisplay,
    echo,
    preserve_stdout,
    print_json,
    print_table,
    progress_bar,
    redirect_stdout_to_stderr,
    spinner,
    stderr_console,
)
from segan.cli.main import main
from segan.training.trainer import TrainingProgress


def test_only_results_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray prints its warnings to stdout, in the middle of what a program would read."""
    stdout = sys.stdout
    with preserve_stdout():
        print("help, before any job")
        redirect_stdout_to_stderr()
        print("(raylet) WARNING: 8 PYTHON worker processes have been started")
        echo("for people")
        print_json({"a": 1})
        print_table("title", ["a"], [["b"]])
    assert sys.stdout is stdout
    out, err = capsys.readouterr()
    before, result, *shown = out.splitlines()
    assert (before, json.loads(result), shown[0]) == ("help, before any job", {"a": 1}, "title")
    assert "raylet" not in out
    assert "raylet" in err
    assert "for people" in err


def test_brackets_in_a_table_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with preserve_stdout():
        print_table("title", ["a"], [["[low, high]"], ["[/x]"]])
    out = capsys.readouterr().out
    assert "[low, high]" in out
    assert "[/x]" in out


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_long_name_leaves_room_for_the_other_columns(columns: str) -> None:
    name = "projects/2026-lesion-study/dermoscopy-baseline-lr3e-3-clip0.05/seed0"
    code = (
        "from segan.cli.console import print_table\n"
        f"print_table('runs', ['run', 'epochs', 'state'], [[{name!r}, '1/1', 'finished']])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert all(word in done.stdout for word in ("epochs", "state", "1/1", "finished"))
    column = "".join(line.split("│")[0].strip() for line in lines if "│" in line)
    assert column == name


def test_names_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\x07"
    with preserve_stdout():
        echo(name)
        print_table(name, ["run"], [[name], ["two\nlines"]])
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert "a\\x1b[2J\\x07" in shown.out
    assert "two\\nlines" in shown.out
    assert main(["runs", "ls", f"/nowhere/{name}"]) == 1
    assert "\x1b" not in capsys.readouterr().err


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("predicting", 40, completed=4) as advance:
        for _ in range(36):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    # A line at each tenth after the one that was there before.
    assert [line.split(",")[0] for line in lines] == [f"predicting {n}/40" for n in range(8, 41, 4)]
    assert all(re.fullmatch(r"\S+ \d+/40, [\d.]+/s, \d:\d\d:\d\d left", line) for line in lines)
    with progress_bar("pulling", 2_000, in_bytes=True) as advance:
        advance(2_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"pulling 2.0 kB of 2.0 kB, .*B/s, 0:00:00 left", line)


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr_console, "_force_terminal", True)
    monkeypatch.setattr(stderr_console, "_width", 100)
    with progress_bar("predicting", 3) as advance:
        for _ in range(3):
            advance(1)
    shown = capsys.readouterr().err
    assert "predicting" in shown
    assert "3/3" in shown
    assert re.search(r"\d/s", shown)
    with spinner("exporting"):
        pass
    assert "exporting" in capsys.readouterr().err


def make_progress(epoch: int, wrong_saturated_fraction: float | None) -> TrainingProgress:
    return TrainingProgress(
        epoch=epoch,
        total_epochs=9,
        samples=10 * epoch,
        total_samples=90,
        critic_loss=None,
        segmentor_loss=None,
        dice_loss=None,
        jaccard=0.5,
        best_jaccard=0.5,
        k=1.0,
        learning_rate=0.003,
        critic_learning_rate=0.003,
        saturated_fraction=0.99,
        wrong_saturated_fraction=wrong_saturated_fraction,
        images_per_second=1.0,
        num_validations=epoch,
    )


def test_saturated_wrong_pixels_are_warned_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainingDisplay() as display:
        for epoch, fraction in ((1, None), (4, 0.93), (5, 0.5), (6, 0.51), (7, 0.93)):
            display(make_progress(epoch, fraction))
    lines = capsys.readouterr().err.splitlines()
    (warning,) = (line for line in lines if "warning" in line)
    assert warning.startswith("warning: epoch 6: 51% of the wrong validation pixels are saturated")
    assert "raise loss.cross_entropy_weight" in warning
    assert len(lines) == 6


def test_spinner_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with spinner("exporting"):
        assert capsys.readouterr().err == "exporting\n"
    assert capsys.readouterr().err == ""

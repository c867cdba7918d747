"""What goes to people and what to programs."""

import json
import re
import sys

import pytest

from segan.terminal import answer, divert, people, progress, say, stdout_for_results, table, waiting


def test_only_results_reach_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Ray prints its warnings to stdout, in the middle of what a program would read."""
    stdout = sys.stdout
    with stdout_for_results():
        print("help, before any job")
        divert()
        print("(raylet) WARNING: 8 PYTHON worker processes have been started")
        say("for people")
        answer({"a": 1})
        table("title", ["a"], [["b"]])
    assert sys.stdout is stdout
    out, err = capsys.readouterr()
    before, result, *shown = out.splitlines()
    assert (before, json.loads(result), shown[0]) == ("help, before any job", {"a": 1}, "title")
    assert "raylet" not in out
    assert "raylet" in err
    assert "for people" in err


def test_progress_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("predicting", 40, done=4) as advance:
        for _ in range(36):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    # A line at each tenth after the one that was there before.
    assert [line.split(",")[0] for line in lines] == [f"predicting {n}/40" for n in range(8, 41, 4)]
    assert all(re.fullmatch(r"\S+ \d+/40, [\d.]+/s, \d:\d\d:\d\d left", line) for line in lines)
    with progress("pulling", 2_000, in_bytes=True) as advance:
        advance(2_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"pulling 2.0 kB of 2.0 kB, .*B/s, 0:00:00 left", line)


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "_force_terminal", True)
    monkeypatch.setattr(people, "_width", 100)
    with progress("predicting", 3) as advance:
        for _ in range(3):
            advance(1)
    shown = capsys.readouterr().err
    assert "predicting" in shown
    assert "3/3" in shown
    assert re.search(r"\d/s", shown)
    with waiting("exporting"):
        pass
    assert "exporting" in capsys.readouterr().err


def test_waiting_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("exporting"):
        assert capsys.readouterr().err == "exporting\n"
    assert capsys.readouterr().err == ""

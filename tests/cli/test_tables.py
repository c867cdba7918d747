"""Tables of results on the terminal."""

from __future__ import annotations

import pytest

from segan.cli import console
from segan.cli.tables import show_study
from segan.runs.study import TrialRow
from segan.runs.trial import TrialStatus


def make_row(number: int, status: TrialStatus) -> TrialRow:
    return TrialRow(
        trial=f"trial_{number:03d}",
        parameters={
            "optimizer.weight_clip": 0.0617,
            "optimizer.learning_rate": 0.00103,
            "logistic.final_k": 0.3,
        },
        epochs=300,
        jaccard=0.7087,
        best_epoch=142,
        threshold=0.045,
        jaccard_at_config_threshold=0.7,
        jaccard_curve=[0.7],
        checkpoint=None,
        seconds=12.0,
        status=status,
        reason="",
    )


def test_leaderboard_has_one_line_per_trial_on_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.stdout_console, "_width", 80)
    with console.preserve_stdout():
        show_study("s3://bucket/study", [make_row(0, TrialStatus.UNFINISHED)])
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "trial_000" in line]
    assert "142/300" in row
    assert "unfinished" in row


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_the_values_of_a_table_can_be_read_at_any_width(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name, which may be of any length, is folded; no other word is cut up."""
    monkeypatch.setattr(console.stdout_console, "_width", width)
    values = ["12/300", "0.7087 at 142", "unfinished, 45 min", "2026-11-27 18:43", 1517]
    columns = ["run", "epochs", "jaccard", "state", "started", "images/s"]
    with console.preserve_stdout():
        console.print_table("runs", columns, [["a/long/name" * 9, *values], ["short", *values]])
    lines = capsys.readouterr().out.splitlines()[1:]
    assert all(len(line) <= width for line in lines)
    words = " ".join(lines).replace("│", " ").split()
    for word in " ".join(map(str, values)).split():
        assert words.count(word) == 2, word

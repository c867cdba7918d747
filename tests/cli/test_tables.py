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

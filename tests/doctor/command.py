"""Runs `segan doctor` and parses its result."""

from __future__ import annotations

import json

import pytest

from segan.cli.main import main


def run_doctor(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, str], str]:
    """Returns the exit code, "status | message | advice" of each check, and stderr."""
    code = main(["doctor", "--json", *args])
    captured = capsys.readouterr()
    rows = {row.pop("check"): row for row in json.loads(captured.out)}
    assert all(list(row) == ["status", "message", "advice"] for row in rows.values())
    lines = {name: " | ".join(row.values()).rstrip(" |") for name, row in rows.items()}
    assert (code == 1) == any(line.startswith("failed |") for line in lines.values())
    return code, lines, captured.err

"""The command `segan doctor`, and its answer by check."""

from __future__ import annotations

import json

import pytest

from segan.cli.main import main


def run_doctor(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, str], str]:
    """Exit code; of each check its verdict, what was found, what to do; and stderr."""
    code = main(["doctor", "--json", *words])
    said = capsys.readouterr()
    rows = {row.pop("check"): row for row in json.loads(said.out)}
    assert all(list(row) == ["status", "message", "advice"] for row in rows.values())
    lines = {name: " | ".join(row.values()).rstrip(" |") for name, row in rows.items()}
    assert (code == 1) == any(line.startswith("failed |") for line in lines.values())
    return code, lines, said.err

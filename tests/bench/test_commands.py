"""The benchmark commands at minimal size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from segan.cli.main import main

SMALL = ["--repeats", "1", "--json"]


def bench(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["bench", *words, *SMALL]) == 0
    return json.loads(capsys.readouterr().out)


def test_step(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["network.width=2", "training.batch_size=2", "augment.crop=64"]
    found = bench(capsys, "step", "--threads", "1", *tiny)
    names = [timing["name"] for timing in found["timings"]]
    assert names[:3] == ["authors' order", "segan", "+ channels last"]
    assert all(0 < timing["roofline_fraction"] < 1 for timing in found["timings"])
    assert found["timings"][0]["speedup"] == 1
    assert {"cpu", "cores", "load", "torch", "python"} <= set(found["machine"])


def test_ingest(capsys: pytest.CaptureFixture[str]) -> None:
    found = bench(capsys, "ingest", "--pairs", "4", "--short-side", "64", "--workers", "1")
    assert [(timing["name"], timing["images"]) for timing in found["timings"]] == [
        ("plain loop", 4),
        ("segan ingest", 4),
    ]


def test_predict(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--count", "2", "--short-side", "64", "--threads", "1", "network.width=2"]
    found = bench(capsys, *words)
    assert [(timing["name"], timing["images"]) for timing in found["timings"]] == [
        ("sequential", 2),
        ("segan predict", 2),
    ]


def test_the_table_names_variants_and_roofline(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ingest", "--pairs", "2", "--short-side", "64", "--workers", "1", "--repeats", "1"]
    assert main(["bench", *words]) == 0
    said = capsys.readouterr()
    assert "plain loop" in said.out
    assert "segan ingest" in said.out
    assert "roofline, images/s: decoding only" in said.err

"""The simulation of large runs: what grows, and what does not."""

from __future__ import annotations

import json
import math

import pytest

from segan.bench.scale import ScaleReport, bench_scale, make_records
from segan.cli.main import main
from segan.data.stream.batches import SHARDS_AHEAD

IMAGES, WORKERS = (16_000, 64_000, 256_000), (2, 8, 32)


@pytest.fixture(scope="module")
def report() -> ScaleReport:
    return bench_scale(IMAGES, WORKERS)


def test_costs_grow_no_faster_than_the_images(report: ScaleReport) -> None:
    exponents = report.exponents_in_images
    for linear in ("manifest_bytes", "spec_bytes", "requests", "validation_requests"):
        assert 0.8 < exponents[linear] < 1.1, linear
    for constant in ("shards_in_memory", "flag_messages"):
        assert exponents[constant] == pytest.approx(0, abs=0.05), constant


def test_a_worker_more_costs_the_others_nothing(report: ScaleReport) -> None:
    exponents = report.exponents_in_workers
    for constant in ("manifest_bytes", "spec_bytes", "shards_in_memory"):
        assert exponents[constant] == pytest.approx(0, abs=0.05), constant
    assert exponents["requests"] < 0.2
    for point in report.by_workers:
        shards = len(make_records(point.images).shards("train"))
        assert point.requests <= shards + point.workers - 1  # one for each border of two lanes
        assert point.shards_in_memory <= 1 + SHARDS_AHEAD + 1  # and one that is being opened
        assert point.flag_messages == math.log2(point.workers)
        assert point.validation_requests == max(
            point.workers, len(make_records(point.images).shards("validation"))
        )


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "scale", "--max-images", "40000", "--max-workers", "4"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "shards in memory" in said
    assert "exponent" in said
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["images"] for point in found["by_images"]] == [400, 4000, 40000]
    assert [point["workers"] for point in found["by_workers"]] == [2, 3, 4]

"""Metrics: a flush costs what is new, and whatever is lost or cut off, the rest is read."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan import storage
from segan.errors import StorageError
from segan.runs import metrics_file
from segan.runs.metrics_file import MetricsWriter, read_metrics, write_metrics


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.integration)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return f"{root}/run"


def lines_of(samples: Sequence[int], start: str = "first") -> list[dict[str, Any]]:
    return [{"kind": "step", "epoch": 1, "samples": n, "start": start} for n in samples]


def part_names(run: str) -> list[str]:
    return [file.name for file in storage.list_files(f"{run}/metrics")]


def test_lines_come_back_as_they_were_written(run: str) -> None:
    assert read_metrics(run) == []
    lines = [
        {"kind": "step", "epoch": 1, "samples": 10, "loss": 0.1 + 0.2},
        {
            "kind": "epoch",
            "epoch": 1,
            "samples": 10,
            "jaccard_curve": [0.0, 1e-9],
            "note": "ü\u2028\n",
        },
    ]
    write_metrics(run, lines)
    assert read_metrics(run) == lines
    write_metrics(run, lines[:1])
    assert read_metrics(run) == lines[:1]


def test_a_flush_writes_what_is_new(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    for name in ("write_bytes", "append_bytes"):

        def count(uri: str, content: bytes, *rest: Any, real: Any = getattr(storage, name)) -> None:  # noqa: B008
            written.append(len(content))
            real(uri, content, *rest)

        monkeypatch.setattr(storage, name, count)
    writer = MetricsWriter(run, 0)
    for step in range(100_000, 100_040):
        writer.append(lines_of([step]))
    assert len(written) == 40
    assert len(set(written)) == 1
    assert read_metrics(run) == lines_of(range(100_000, 100_040))


def test_a_resumed_run_drops_the_lines_beyond_its_checkpoint(run: str) -> None:
    writer = MetricsWriter(run, 0)
    for samples in (10, 20, 20, 30):
        writer.append(lines_of([samples]))
    resumed = MetricsWriter(run, 20)
    assert [line["samples"] for line in read_metrics(run)] == [10, 20, 20, 30]  # as it was left
    resumed.append(lines_of([30, 40], "second"))
    assert read_metrics(run) == lines_of([10, 20, 20]) + lines_of([30, 40], "second")
    MetricsWriter(run, 0).append(lines_of([10], "third"))
    assert read_metrics(run) == lines_of([10], "third")


def test_an_ended_run_has_one_file(run: str) -> None:
    for start in (0, 20):
        writer = MetricsWriter(run, start)
        for samples in (start + 10, start + 20, start + 30):
            writer.append(lines_of([samples], str(start)))
    expected = read_metrics(run)
    writer.merge()
    assert [file.name for file in storage.list_files(run)] == ["metrics.jsonl"]
    assert read_metrics(run) == expected
    writer.merge()
    assert read_metrics(run) == expected
    MetricsWriter(run, 30).append(lines_of([40], "again"))
    assert read_metrics(run) == [line for line in expected if line["samples"] <= 30] + lines_of(
        [40], "again"
    )


OPERATIONS = ("write_bytes", "delete_file", "delete_folder")


@given(starts=st.lists(st.integers(0, 5), min_size=1, max_size=4), fails_at=st.integers(0, 12))
def test_a_kill_while_merging_loses_and_repeats_nothing(
    tmp_path_factory: pytest.TempPathFactory, starts: list[int], fails_at: int
) -> None:
    run = str(tmp_path_factory.mktemp("run"))
    for number, start in enumerate([0, *starts]):
        writer = MetricsWriter(run, start)
        for samples in range(start + 1, start + 4):
            writer.append(lines_of([samples], str(number)))
    expected, done = read_metrics(run), 0
    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:

            def fail(*arguments: Any, real: Any = getattr(storage, name)) -> None:  # noqa: B008
                nonlocal done
                if done == fails_at:
                    raise StorageError("killed")
                done += 1
                real(*arguments)

            patch.setattr(storage, name, fail)
        with contextlib.suppress(StorageError):
            writer.merge()
    assert read_metrics(run) == expected
    writer = MetricsWriter(run, 1)
    writer.append(lines_of([2], "after"))
    expected = [line for line in expected if line["samples"] <= 1] + lines_of([2], "after")
    assert read_metrics(run) == expected
    writer.merge()
    assert read_metrics(run) == expected
    assert [file.name for file in storage.list_files(run)] == ["metrics.jsonl"]


def test_a_merge_while_it_is_read(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MetricsWriter(run, 0)
    writer.append(lines_of([10]))
    real, calls = metrics_file._list_parts, []

    def merge_after_listing(uri: str) -> Any:
        parts = real(uri)
        if not calls:
            calls.append(1)
            writer.merge()
        return parts

    monkeypatch.setattr(metrics_file, "_list_parts", merge_after_listing)
    assert read_metrics(run) == lines_of([10])


# Lost and torn


@pytest.mark.parametrize(
    ("tail", "count"),
    [(b'{"samples": 3', 1), (b"\0" * 50, 1), (b"\n3\n[]\n", 2), (b"\xff\n" + b"[" * 10**5, 2)],
)
def test_torn_lines_are_passed_over_with_one_message(
    run: str, tail: bytes, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    MetricsWriter(run, 0).append(lines_of([10, 20]))
    (name,) = part_names(run)
    part = f"{run}/metrics/{name}"
    storage.write_bytes(part, storage.read_bytes(part) + tail)
    MetricsWriter(run, 20).append(lines_of([30]))
    with caplog.at_level(logging.WARNING, "segan"):
        assert read_metrics(run) == lines_of([10, 20, 30])
    (message,) = caplog.messages
    assert message.startswith(f"{part}: ")
    assert message.endswith(f"; {count} of {2 + count} lines left out")


@pytest.mark.parametrize(("missing", "message"), [(0, "parts 0 to 0"), (1, "parts 1 to 1")])
def test_a_missing_part_is_named(
    run: str, missing: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    for start in (0, 10, 20):
        MetricsWriter(run, start).append(lines_of([start + 10]))
    storage.delete_file(f"{run}/metrics/{part_names(run)[missing]}")
    with caplog.at_level(logging.WARNING, "segan"):
        found = [line["samples"] for line in read_metrics(run)]
    assert found == [n for n in (10, 20, 30) if n != 10 * (missing + 1)]
    (said,) = caplog.messages
    assert message in said


def test_a_torn_metrics_file_is_read_as_far_as_it_goes(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_metrics(run, lines_of([10, 20]))
    whole = storage.read_bytes(f"{run}/metrics.jsonl")
    storage.write_bytes(f"{run}/metrics.jsonl", whole[: len(whole) * 3 // 4])
    assert read_metrics(run) == lines_of([10])
    assert "; 1 of 2 lines left out" in caplog.text

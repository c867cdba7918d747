"""driver.log: its bound, what it keeps over restarts, and who may write it."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest

from segan import storage
from segan.cli.console import echo
from segan.cli.main import main
from segan.errors import StorageError, UsageError
from segan.runs import driver_log
from segan.runs.driver_log import (
    BoundedLines,
    DriverLog,
    LogLine,
    follow_log,
    keep_driver_log,
    read_log,
)
from segan.storage.lease import hold_lease


def messages(uri: str) -> list[str]:
    return [line.message for line in read_log(uri)]


@pytest.fixture
def run(tmp_path: Path) -> str:
    """The URI of a run that has begun."""
    uri = str(tmp_path / "run")
    storage.write_json(f"{uri}/run.json", {})
    return uri


def test_the_first_and_the_last_lines_are_kept() -> None:
    lines = BoundedLines(head_bytes=6, tail_bytes=9)  # two lines of 3 bytes, and three
    for number in range(10, 20):
        lines.add(str(number))
    # 10 11 are the first, 17 18 19 the last: of ten lines five are left out.
    assert lines.encode() == b"10\n11\n... 5 lines left out\n17\n18\n19\n"


def test_a_bounded_text_that_is_read_again_goes_on_as_if_it_had_not_been() -> None:
    through, again = BoundedLines(6, 9), BoundedLines(6, 9)
    for number in range(10, 20):
        through.add(str(number))
    for line in through.encode().decode().splitlines():
        again.add(line)
    for lines in (through, again):
        lines.add("20")
    assert again.encode() == through.encode()


def test_one_omitted_line_is_counted_in_the_singular() -> None:
    lines = BoundedLines(3, 3)
    for line in ("a1", "b2", "c3"):
        lines.add(line)
    assert lines.encode() == b"a1\n... 1 line left out\nc3\n"


def test_messages_warnings_and_the_error_are_kept_over_restarts(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = run
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")

    def fail() -> None:
        echo("starting")
        logging.getLogger("segan.storage").warning("first\nsecond planted-secret")
        raise UsageError("wrong width")

    with pytest.raises(UsageError), keep_driver_log(uri, "segan train"):
        fail()
    with pytest.raises(ZeroDivisionError), keep_driver_log(uri, "segan train"):
        1 / 0  # noqa: B018
    with keep_driver_log(uri, "segan train"):
        pass
    found = read_log(uri)
    assert [(line.level, line.message) for line in found[1:5]] == [
        ("INFO", "starting"),
        ("WARNING", "first"),
        ("WARNING", "second <AWS_SECRET_ACCESS_KEY>"),
        ("ERROR", "wrong width"),
    ]
    assert found[5].message.startswith("segan train: segan ")
    assert "ERROR ZeroDivisionError: division by zero" in " ".join(map(str, found))
    assert found[-1].message == "segan train: done"
    assert [line.time for line in found] == sorted(line.time for line in found)


def test_a_log_that_another_driver_has_written_is_left_alone(run: str) -> None:
    old = DriverLog(run)
    old.write(logging.INFO, "one")
    assert old.flush()
    new = DriverLog(run)
    new.write(logging.INFO, "two")
    assert new.flush()
    old.write(logging.INFO, "three")
    assert old.flush(), "nothing is left to write"
    assert messages(run) == ["one", "two"]


def test_a_command_that_fails_before_the_run_begins_leaves_nothing(tmp_path: Path) -> None:
    uri = str(tmp_path / "run")
    with pytest.raises(UsageError), hold_lease(uri), keep_driver_log(uri, "segan train"):
        raise UsageError("no such records")
    assert not (tmp_path / "run").exists()


def test_storage_that_fails_does_not_fail_the_block(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_log, "CLOSE_ATTEMPTS", 1)
    with keep_driver_log(run, "segan train"):
        Path(run, "driver.log").mkdir()  # cannot be read or written as a file
    assert not any(Path(run, "driver.log").iterdir())


def test_lines_reach_storage_while_the_command_runs(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_log, "FLUSH_INTERVAL_S", 0.01)
    with keep_driver_log(run, "segan train"):
        path = Path(run, "driver.log")
        while not (path.exists() and path.stat().st_size):  # it is created, and then written
            time.sleep(0.01)
        assert messages(run)[0].startswith("segan train: ")


def test_following_ends_with_the_driver(run: str) -> None:
    log = DriverLog(run)

    def write(text: str) -> None:
        log.write(logging.INFO, text)
        assert log.flush()

    write("one")
    with hold_lease(run):
        lines = follow_log(run, sleep=lambda _: None)
        assert next(lines).message == "one"
        write("two")
        assert next(lines).message == "two"
        write("three")
    assert [line.message for line in lines] == ["three"]


def test_the_command_prints_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = str(tmp_path)
    text = "2026-11-27T14:00:00.000Z WARNING slow store\n... 3 lines left out\n"
    storage.write_bytes(f"{uri}/driver.log", text.encode())
    assert main(["runs", "logs", uri]) == 0
    assert capsys.readouterr().out == text
    assert main(["runs", "logs", uri, "--follow", "--json"]) == 0
    followed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["runs", "logs", uri, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == followed
    assert LogLine(**followed[0]) == LogLine("2026-11-27T14:00:00.000Z", "WARNING", "slow store")


def test_a_missing_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match=r"no driver\.log here; expected the URI of a run"):
        read_log(str(tmp_path))
    assert main(["runs", "logs", str(tmp_path)]) == 1

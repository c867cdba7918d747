"""The listing of a local folder: links, and what cannot be listed."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from segan import storage
from segan.errors import StorageError
from tests.cli.test_cli import run_cli
from tests.runs.test_transfer import write_run

NOT_UTF8 = os.fsdecode(b"l\xe4sion.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files a and sub/b."""
    root = tmp_path / "folder"
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"1")
    (root / "sub" / "b").write_bytes(b"22")
    return root


def listed(folder: Path) -> list[str]:
    return [file.name for file in storage.list_files(str(folder))]


def test_sizes_and_times_are_those_of_the_files(folder: Path) -> None:
    os.utime(folder / "a", (0, 1.5e9))
    first, second = storage.list_files(str(folder))
    assert (first.size, second.size) == (1, 2)
    assert first.last_modified is not None
    assert first.last_modified.isoformat() == "2017-07-14T02:40:00+00:00"


@pytest.mark.parametrize("target", [".", "..", "/", "../folder"])
def test_links_that_lead_up_are_not_followed(folder: Path, target: str) -> None:
    for name in ("x", "y", "sub/z"):
        (folder / name).symlink_to(target)
    (folder / "sub" / "up").symlink_to("..")
    assert listed(folder) == ["a", "sub/b"]


def test_links_between_two_folders_multiply_no_file(folder: Path) -> None:
    """Followed everywhere, 2 links in each of n folders would be n! paths."""
    for i in range(20):
        (folder / str(i)).mkdir()
        for j in range(20):
            (folder / str(i) / f"to{j}").symlink_to(f"../{j}")
    assert listed(folder) == ["a", "sub/b"]


def test_a_link_that_leads_out_is_followed_but_not_up_from_there(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "disk" / "other").write_bytes(b"")
    (tmp_path / "disk" / "run" / "c").write_bytes(b"")
    (tmp_path / "disk" / "run" / "up").symlink_to("..")
    (folder / "link").symlink_to(tmp_path / "disk" / "run")
    assert listed(folder) == ["a", "link/c", "sub/b"]
    assert listed(folder / "link") == ["c"]


def test_a_folder_with_two_links_is_listed_by_its_own_name(folder: Path) -> None:
    (folder / "another").symlink_to("sub")
    (folder / "zero").symlink_to("sub")
    assert listed(folder) == ["a", "sub/b"]


def test_broken_links_are_no_files_and_links_to_files_are(folder: Path) -> None:
    (folder / "broken").symlink_to("nowhere")
    (folder / "link").symlink_to("sub/b")
    os.mkfifo(folder / "pipe")
    assert listed(folder) == ["a", "link", "sub/b"]
    assert not storage.exists(str(folder / "broken"))
    assert not storage.exists(str(folder / "pipe"))
    assert not storage.exists(str(folder / "a" / "below"))


def test_a_link_to_itself_and_a_name_that_is_not_utf8_are_skipped_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "self").symlink_to("self")
    (folder / NOT_UTF8).write_bytes(b"")
    (folder / "sub" / NOT_UTF8).mkdir()
    assert listed(folder) == ["a", "sub/b"]
    assert sorted(record.getMessage() for record in caplog.records) == [
        rf"{folder}/l\udce4sion.jpg: skipped, its name is not UTF-8; rename it",
        f"{folder}/self: skipped, cannot be read (Too many levels of symbolic links)",
        rf"{folder}/sub/l\udce4sion.jpg: skipped, its name is not UTF-8; rename it",
    ]


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """A folder of a user whom permissions bind, as which the test runs."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)


def test_a_folder_that_may_not_be_read_is_skipped_with_a_warning(
    unprivileged_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = unprivileged_folder / "lost+found"
    closed.mkdir()
    (closed / "x").write_bytes(b"")
    (unprivileged_folder / "a").write_bytes(b"")
    closed.chmod(0)
    try:
        assert listed(unprivileged_folder) == ["a"]
        assert caplog.messages == [f"{closed}: skipped, cannot be listed (Permission denied)"]
        with pytest.raises(StorageError, match="Permission denied; check the permissions"):
            listed(closed)
    finally:
        closed.chmod(0o700)


def test_deleting_a_folder_does_not_follow_its_links(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_bytes(b"")
    (folder / "link").symlink_to(kept)
    storage.delete_folder(str(folder))
    assert not folder.exists()
    assert (kept / "file").exists()


def test_runs_are_listed_beside_such_links_and_names(tmp_path: Path) -> None:
    run = write_run(str(tmp_path / "run"), 0.5)
    for parent in (tmp_path, Path(run.uri)):
        (parent / "x").symlink_to(".")
        (parent / "y").symlink_to("..")
        (parent / NOT_UTF8).write_bytes(b"")
    done = run_cli("runs", "ls", tmp_path, "--json")
    assert (done.exit_code, [row["name"] for row in done.json]) == (0, ["run"])
    assert r"l\udce4sion.jpg: skipped" in done.stderr
    assert run_cli("runs", "show", run.uri, "--json").exit_code == 0


def test_listing_runs_loads_no_large_package(tmp_path: Path) -> None:
    """Each of these takes longer to import than the command takes in all."""
    write_run(str(tmp_path / "run"), 0.5)
    program = (
        "import sys\n"
        "from segan.cli.main import main\n"
        f"assert main(['runs', 'ls', {str(tmp_path)!r}]) == 0\n"
        "large = {'numpy', 'pyarrow', 'torch', 'ray', 'boto3'} & {*sys.modules}\n"
        "sys.exit(str(large) if large else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

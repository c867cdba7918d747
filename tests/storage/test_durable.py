"""Durable writes: what was called done survives a power cut.

The order of syncs, renames and deletions is recorded by functions in place of those of `os`; it is
the same on every file system. On Linux, root can also cut the power of one (`tests.storage.disk`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.download.partial import resumable_writer
from segan.data.ingest import IngestOptions, ingest
from segan.data.records.shards import write_task
from segan.data.synthetic import generate_archive
from segan.runs.checkpoint import CheckpointInfo
from segan.runs.run import Run
from segan.storage.compare_and_swap import conditional_file
from tests.storage.disk import Disk
from tests.storage.disk import disk as disk  # a fixture


class DiskJournal:
    """What was done to the files below a folder, in order: (what, path)."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.events: list[tuple[str, str]] = []
        self._synced: dict[str, int] = {}  # bytes of a file at its last sync

    def fsync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._synced[path] = os.fstat(descriptor).st_size
        self._add("sync", path)

    def rename(self, source: str | Path, target: str | Path) -> None:
        assert self._synced.get(str(source)) == os.stat(source).st_size, f"{source} is not on disk"
        self._add("rename", str(target))

    def delete(self, path: str | Path, dir_fd: int | None = None) -> None:
        folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
        if os.path.lexists(file := os.path.join(folder, path)):
            self._add("delete", file)

    def mkdir(self, path: str | Path, *_: Any) -> None:
        self._add("mkdir", str(path))

    def _add(self, what: str, path: str) -> None:
        if path.startswith(str(self.folder)):
            self.events.append((what, path))

    def renames(self) -> list[str]:
        return [path for what, path in self.events if what == "rename"]

    def check(self) -> None:
        """Each new name is on disk before the next rename or deletion."""
        unsynced: set[str] = set()
        for what, path in self.events:
            if what == "sync":
                unsynced.discard(path)
                continue
            if what != "mkdir":
                assert not unsynced, f"{what} {path}, but {unsynced} are not on disk"
            if what in ("rename", "mkdir"):
                unsynced.add(os.path.dirname(path))
        assert not unsynced


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DiskJournal:
    journal = DiskJournal(tmp_path)
    for name, record in (
        ("fsync", journal.fsync),
        ("replace", journal.rename),
        ("unlink", journal.delete),
        ("mkdir", journal.mkdir),
    ):
        monkeypatch.setattr(os, name, recorded(getattr(os, name), record))
    return journal


def recorded(call: Callable[..., Any], record: Callable[..., None]) -> Callable[..., Any]:
    def record_and_call(*args: Any, **options: Any) -> Any:
        record(*args, **options)
        return call(*args, **options)

    return record_and_call


def test_a_file_is_on_disk_before_its_name(journal: DiskJournal, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file"
    storage.write_bytes(str(target), b"content")
    journal.check()
    assert journal.events[-1] == ("sync", str(target.parent))
    assert journal.renames() == [str(target)]
    assert [p for what, p in journal.events if what == "mkdir"] == [
        str(tmp_path / "new"),
        str(target.parent),
    ]


def test_a_deletion_is_on_disk_when_it_returns(journal: DiskJournal, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "file"), b"content")
    storage.delete_file(str(tmp_path / "file"))
    assert journal.events[-2:] == [("delete", str(tmp_path / "file")), ("sync", str(tmp_path))]


def test_a_download_is_on_disk_before_its_name(journal: DiskJournal, tmp_path: Path) -> None:
    with resumable_writer(str(tmp_path / "file.zip"), "tag") as (_, write):
        write(b"content")
    journal.check()
    assert journal.events[-1] == ("sync", str(tmp_path))


def test_a_folder_that_cannot_be_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write_bytes(str(tmp_path / "file"), b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def generate(folder: Path, seed: int) -> str:
    generate_archive(
        {"train": 5, "validation": 2},
        seed,
        lambda name, content: storage.write_bytes(f"{folder}/{name}", content),
        32,
    )
    return str(folder)


def write_records(source: str, out: str, overwrite: bool = False) -> list[str]:
    """Writes records in this process; returns the names of their shards."""
    options = IngestOptions((20, 16), 2, overwrite=overwrite)
    manifest = ingest(open_archive(source), out, options, lambda tasks: map(write_task, tasks))
    return [shard.name for shards in manifest.splits.values() for shard in shards]


def test_old_shards_are_deleted_after_the_new_manifest(
    journal: DiskJournal, tmp_path: Path
) -> None:
    out = str(tmp_path / "records")
    old = write_records(generate(tmp_path / "one", 0), out)
    source = generate(tmp_path / "other", 1)
    journal.events.clear()
    new = write_records(source, out, overwrite=True)
    journal.check()
    manifest = journal.events.index(("rename", f"{out}/manifest.json"))
    before, after = journal.events[:manifest], journal.events[manifest:]
    assert {f"{out}/{name}" for name in new} <= {p for what, p in before if what == "rename"}
    assert not [path for what, path in before if what == "delete"]
    deleted = {p for what, p in after if what == "delete"} - {f"{out}/lease.json"}
    assert deleted == {f"{out}/{name}" for name in old}


def test_older_checkpoints_are_deleted_after_the_new_manifest(
    journal: DiskJournal, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    for epoch in range(4):
        info = CheckpointInfo(epochs=epoch, samples=epoch, metrics={}, config={})
        saved = run.save_checkpoint(f"epoch_{epoch:05d}", {"weights": bytes(1000)}, info)
        run.prune_checkpoints(saved)
    journal.check()
    deleted = [i for i, (what, _) in enumerate(journal.events) if what == "delete"]
    manifests = [
        i
        for i, (what, path) in enumerate(journal.events)
        if path.endswith("manifest.json") and what == "rename"
    ]
    # The third save deletes the first checkpoint, the fourth the second.
    assert len(manifests) == 4
    assert manifests[2] < deleted[0] < manifests[3] < deleted[-1]
    assert [checkpoint.samples for checkpoint in run.checkpoints()] == [2, 3]


@pytest.mark.parametrize("content", [b"", bytes(300)])
def test_a_lease_that_a_power_cut_left_empty_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lease.json").write_bytes(content)
    file = conditional_file(str(tmp_path / "lease.json"))
    assert file.read() is None
    assert file.compare_and_swap(None, b"new")
    assert (tmp_path / "lease.json").read_bytes() == b"new"


# Power cuts


def test_what_is_written_survives_a_power_cut(disk: Disk) -> None:
    content = os.urandom(3_000_000)
    storage.write_bytes(f"{disk.folder}/new/folder/file", content)
    storage.write_bytes(f"{disk.folder}/deleted", b"content")
    storage.delete_file(f"{disk.folder}/deleted")
    (disk.folder / "later").write_bytes(content)  # not synced: it shows that the cut is one
    disk.cut_power()
    disk.restart()
    assert (disk.folder / "new/folder/file").read_bytes() == content
    assert not (disk.folder / "deleted").exists()
    later = disk.folder / "later"
    assert not later.exists() or later.read_bytes() != content


def test_records_survive_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    out = f"{disk.folder}/records"
    names = write_records(generate(tmp_path / "one", 0), out)
    disk.cut_power()
    disk.restart()
    assert {*names, "manifest.json"} <= {file.name for file in storage.list_files(out)}
    assert write_records(str(tmp_path / "one"), out) == names  # nothing is torn
    names = write_records(generate(tmp_path / "other", 1), out, overwrite=True)
    disk.cut_power()
    disk.restart()
    found = {file.name for file in storage.list_files(out) if "-of-" in file.name}
    assert found >= set(names)
    assert write_records(str(tmp_path / "other"), out) == names

"""Local folders: lists what is below them, and writes files that survive a power cut."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

OnSkip = Callable[[str, str], object]  # called with a path and a reason


def walk(root: str, on_skip: OnSkip) -> Iterator[tuple[str, os.stat_result]]:
    """Yields the name relative to `root` and the status of each file below a folder.

    Each folder is listed once, so that links cannot multiply the files. A link to a folder is
    followed unless the folder has been listed, or contains the link or `root`.

    Args:
        root: an absolute path; a folder that does not exist has no files.
        on_skip: called for what is below `root` and cannot be read, and for a name that is not
            UTF-8: names become parts of URIs, JSON and CSV.

    Raises:
        OSError: `root` is not a folder or cannot be read.
    """
    try:
        os.stat(root)
    except (FileNotFoundError, NotADirectoryError):  # not there yet, or its parent is a file
        return
    links: list[str] = []
    listed: set[tuple[int, int]] = set()
    folders = [""]
    while folders or links:
        # Links come last, so that a folder below `root` is listed by its own name.
        folder = folders.pop() if folders else links.pop(0)
        for entry in _scan(root, folder, listed, on_skip):
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                entry.name.encode()
                status = entry.stat()
            except UnicodeEncodeError:
                on_skip(_printable(entry.path), "its name is not UTF-8; rename it")
                continue
            except FileNotFoundError:  # a broken link, or deleted in the meantime
                continue
            except OSError as error:
                on_skip(entry.path, f"cannot be read ({error.strerror})")
                continue
            if stat.S_ISREG(status.st_mode):
                yield name, status
            elif stat.S_ISDIR(status.st_mode):
                (links if entry.is_symlink() else folders).append(name)


def _scan(
    root: str, folder: str, listed: set[tuple[int, int]], on_skip: OnSkip
) -> list[os.DirEntry[str]]:
    """The entries of a folder by name; none if it has been listed or is not to be."""
    path = os.path.join(root, folder)
    try:
        status = os.stat(path)
        key = (status.st_dev, status.st_ino)
        if key in listed or (os.path.islink(path) and _leads_up(path, root)):
            return []
        listed.add(key)
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:  # deleted in the meantime
        return []
    except OSError as error:
        if not folder:
            raise
        on_skip(path, f"cannot be listed ({error.strerror})")
        return []


def _leads_up(link: str, root: str) -> bool:
    """Whether a link leads to a folder that contains the link or `root`."""
    target = os.path.realpath(link)
    inner = (os.path.realpath(os.path.dirname(link)), os.path.realpath(root))
    return any(os.path.commonpath([target, path]) == target for path in inner)


def _printable(path: str) -> str:
    return path.encode(errors="backslashreplace").decode()


@contextlib.contextmanager
def durable_writer(target: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file, which becomes `target` durably if the block succeeds."""
    make_folder(target.parent)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with partial.open("wb") as sink:
            yield sink
            commit_file(sink, target)
    finally:
        partial.unlink(missing_ok=True)


def commit_file(file: BinaryIO, target: Path) -> None:
    """Renames an open, written file to `target` in the same folder, durably.

    The content must be on disk before the new name is: a rename alone may survive a power cut as a
    file of zeros.
    """
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, target)
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Creates a local folder and its parents durably, if they do not exist."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: files that were created, renamed or deleted."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)

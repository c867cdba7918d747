"""Lists the files below a local folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

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
    if not os.path.exists(os.path.normpath(path)):  # `root` is not there yet, or has been deleted
        return []
    try:
        status = os.stat(path)
        key = (status.st_dev, status.st_ino)
        if key in listed or (os.path.islink(path) and _leads_up(path, root)):
            return []
        listed.add(key)
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:  # deleted in this moment
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

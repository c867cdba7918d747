"""Sources of an archive: what lies in a folder, below an `s3://` prefix, and in zips."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from segan import storage
from segan.data.archive import layouts, zips
from segan.data.archive.images import RejectedError
from segan.data.archive.pairs import make_reject
from segan.errors import StorageError, UsageError


class FileEntry(NamedTuple):
    """A file that was listed: its name there, its URI, the path that layouts go by, its fault."""

    name: str
    uri: str
    path: str
    error: str = ""


@dataclass
class Listing:
    """Files, and what is none and can be named alone."""

    entries: list[FileEntry] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)

    def reject(self, name: str, reason: str) -> None:
        """Lists `name` among the rejects, in no split."""
        self.rejects.append(make_reject(name, "", reason))


def list_folder(uri: str) -> Listing:
    """What lies below `uri`, in its zips too; none of it is opened but the zips' directories.

    A zip beside a folder of its name was unpacked: the folder is used.

    Raises:
        StorageError: it cannot be reached.
    """
    listing = Listing()
    files = storage.list_files(uri) if storage.is_s3(uri) else _walk(uri, listing.reject)
    packed = []
    for file in files:
        name, inside = file.name, _safe_join(uri, file.name, listing)
        if not inside or layouts.is_hidden(name):
            continue
        if zips.is_zip(name):
            packed.append((name, inside))
            continue
        too_large = f"{file.size} bytes; expected at most {zips.MAX_BYTES}"
        fault = too_large if file.size > zips.MAX_BYTES else ""
        listing.entries.append(FileEntry(name, inside, name, fault))
    folders = _parent_folders(entry.name for entry in listing.entries)
    for name, inside in packed:
        if name[: -len(".zip")] in folders:
            continue
        try:
            _add_members(listing, inside, name + zips.MEMBER_SEPARATOR, name[: -len(".zip")])
        except RejectedError as error:
            listing.reject(name, str(error))
    return listing


def list_zip(uri: str) -> Listing:
    """What lies in a zip.

    Raises:
        RejectedError: it is no whole zip.
        StorageError: it cannot be reached.
    """
    listing = Listing()
    _add_members(listing, uri, "", storage.basename(uri)[: -len(".zip")])
    return listing


def _add_members(listing: Listing, uri: str, prefix: str, folder: str) -> None:
    """Members as if the zip were a folder: its own folder may or may not be repeated within."""
    seen: set[str] = set()
    for member in zips.list_members(uri):
        name = prefix + member.name
        if not _safe_join(uri, member.name, listing, name) or layouts.is_hidden(member.name):
            continue
        if zips.is_zip(member.name):
            listing.reject(name, "a zip in a zip; unpack the outer one")
            continue
        fault = zips.find_error(member)
        if member.name in seen:
            fault = "a second member of this name; the first is used"
        seen.add(member.name)
        inside = uri + zips.MEMBER_SEPARATOR + member.name
        listing.entries.append(FileEntry(name, inside, f"{folder}/{member.name}", fault))


def _safe_join(uri: str, name: str, listing: Listing, display_name: str = "") -> str:
    """The URI of a name below `uri`; a name that is none inside it becomes a reject."""
    try:
        name.encode()
        return storage.join(uri, name)
    except (UsageError, UnicodeEncodeError):
        listing.reject(display_name or name, "expected a plain name inside the archive")
        return ""


def _parent_folders(names: Iterable[str]) -> set[str]:
    folders: set[str] = set()
    for name in names:
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders


def _walk(root: str, reject: Callable[[str, str], None]) -> Iterator[storage.FileInfo]:
    """The files below a local folder; links are followed only where they stay inside it."""
    real, pending = os.path.realpath(root), [("", False)]
    while pending:
        folder, linked = pending.pop()
        try:
            entries = list(os.scandir(os.path.join(root, folder)))
        except FileNotFoundError:
            continue
        except OSError as error:
            if not folder:
                raise StorageError(f"{root}: {error.strerror}") from None
            reject(folder, f"cannot be listed ({error.strerror})")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if layouts.is_hidden(entry.name + "/"):
                continue
            if entry.is_symlink() and (reason := _find_link_error(real, entry, linked)):
                reject(name, reason)
                continue
            try:
                found = entry.stat()
            except OSError as error:  # gone since, or not for us
                reject(name, f"cannot be read ({error.strerror})")
                continue
            if stat.S_ISDIR(found.st_mode):
                pending.append((name, linked or entry.is_symlink()))
            elif stat.S_ISREG(found.st_mode):
                yield storage.FileInfo(name, found.st_size)
            else:
                reject(name, "neither a file nor a folder")


def _find_link_error(root: str, link: os.DirEntry[str], inside_link: bool) -> str:
    try:
        target = os.path.realpath(link.path, strict=True)
    except OSError as error:
        return f"a link that leads nowhere ({error.strerror})"
    if os.path.commonpath([root, target]) != root:
        return "a link that leads out of the archive; put the files in its place"
    if link.is_dir() and inside_link:  # or links could multiply what there is without end
        return "a link to a folder, below another such link"
    here = os.path.realpath(os.path.dirname(link.path))
    if link.is_dir() and os.path.commonpath([here, target]) == target:
        return "a link to a folder that it lies in"
    return ""

"""Lists the files of an archive: in a folder, below an `s3://` prefix, and in zips."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from segan import storage
from segan.data.archive import layouts, zips
from segan.data.archive.pairs import make_reject
from segan.errors import RejectedError, StorageError, UsageError


class FileEntry(NamedTuple):
    """A listed file: its name, URI, path for `layouts.classify_path`, and why it is unusable."""

    name: str
    uri: str
    path: str
    error: str = ""


@dataclass
class Listing:
    """The files of an archive, and the rejects of no known split."""

    entries: list[FileEntry] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)

    def reject(self, name: str, reason: str) -> None:
        """Adds `name` to the rejects."""
        self.rejects.append(make_reject(name, "", reason))


def list_folder(uri: str) -> Listing:
    """Lists the files below `uri` and in its zips, of which only the directories are read.

    A zip next to a folder of the same name is ignored: it was extracted there.

    Raises:
        StorageError: it cannot be reached.
    """
    listing = Listing()
    files = (
        storage.list_files(uri, in_parallel=True)
        if storage.is_s3(uri)
        else _walk(uri, listing.reject)
    )
    zip_files = []
    for file in files:
        name, file_uri = file.name, _safe_join(uri, file.name, listing)
        if not file_uri or layouts.is_hidden(name):
            continue
        if zips.is_zip(name):
            zip_files.append((name, file_uri))
            continue
        too_large = f"{file.size} bytes; expected at most {zips.MAX_BYTES}"
        error = too_large if file.size > zips.MAX_BYTES else ""
        listing.entries.append(FileEntry(name, file_uri, name, error))
    folders = _parent_folders(entry.name for entry in listing.entries)
    for name, zip_uri in zip_files:
        if name[: -len(".zip")] in folders:
            continue
        try:
            _add_members(listing, zip_uri, name + zips.MEMBER_SEPARATOR, name[: -len(".zip")])
        except RejectedError as error:
            listing.reject(name, str(error))
    return listing


def list_zip(uri: str) -> Listing:
    """Lists the members of a zip.

    Raises:
        RejectedError: it is damaged or no zip.
        StorageError: it cannot be reached.
    """
    listing = Listing()
    _add_members(listing, uri, "", storage.basename(uri)[: -len(".zip")])
    return listing


def _add_members(listing: Listing, uri: str, prefix: str, folder: str) -> None:
    """Adds a zip's members as files of a folder of its name, which they may or may not repeat."""
    seen: set[str] = set()
    for member in zips.list_members(uri):
        name = prefix + member.name
        if not _safe_join(uri, member.name, listing, name) or layouts.is_hidden(member.name):
            continue
        if zips.is_zip(member.name):
            listing.reject(name, "a zip within a zip; extract the outer one")
            continue
        error = zips.find_error(member)
        if member.name in seen:
            error = "duplicate member name; the first one is used"
        seen.add(member.name)
        member_uri = uri + zips.MEMBER_SEPARATOR + member.name
        listing.entries.append(FileEntry(name, member_uri, f"{folder}/{member.name}", error))


def _safe_join(uri: str, name: str, listing: Listing, display_name: str = "") -> str:
    """The URI of `name` below `uri`; "" for a name that leads outside, which is rejected."""
    try:
        name.encode()
        return storage.join(uri, name)
    except (UsageError, UnicodeEncodeError):
        listing.reject(display_name or name, "expected a relative name inside the archive")
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
    """The files below a local folder; follows only links that stay inside it."""
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
                status = entry.stat()
            except OSError as error:  # deleted in the meantime, or no permission
                reject(name, f"cannot be read ({error.strerror})")
                continue
            if stat.S_ISDIR(status.st_mode):
                pending.append((name, linked or entry.is_symlink()))
            elif stat.S_ISREG(status.st_mode):
                yield storage.FileInfo(name, status.st_size)
            else:
                reject(name, "neither file nor folder")


def _find_link_error(root: str, link: os.DirEntry[str], inside_link: bool) -> str:
    try:
        target = os.path.realpath(link.path, strict=True)
    except OSError as error:
        return f"broken link ({error.strerror})"
    if os.path.commonpath([root, target]) != root:
        return "link to outside the archive; replace it by the files"
    if link.is_dir() and inside_link:  # else links could multiply the files without end
        return "link to a folder below another such link"
    folder = os.path.realpath(os.path.dirname(link.path))
    if link.is_dir() and os.path.commonpath([folder, target]) == target:
        return "link to a folder that contains it"
    return ""

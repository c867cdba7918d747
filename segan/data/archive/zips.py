"""Reads members of zip files in storage without extracting or downloading the zip.

A member's URI is `<zip>.zip!/<name>`. The central directory is read once per process, by `zipfile`.
A member then costs one ranged request, and small neighbouring members share one. `zipfile` does not
read the members, because it does so in steps of a few kilobytes, each of them a request to S3.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import io
import re
import stat
import struct
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from segan import storage
from segan.errors import RejectedError, StorageError

MEMBER_SEPARATOR = "!/"
MAX_BYTES = 256 * 2**20  # of a file or member, ten times the size of a photograph
# Members above RATIO_CHECK_MIN_BYTES are rejected as zip bombs if their compression ratio is larger
# than MAX_COMPRESSION_RATIO. Small blank bitmaps do reach a ratio of 1000.
RATIO_CHECK_MIN_BYTES = 2**20
MAX_COMPRESSION_RATIO = 200

MAX_GAP = 256 * 2**10  # bytes between two members of one request; skipping more is faster
MAX_RANGE = 4 * 2**20  # bytes of a request for several members
_CACHED_RANGES = 4  # per zip: threads read images and masks, each in one range or the next

_LOCAL_HEADER_SIZE = 30  # bytes of a member's local header before its name
_MAX_NAME_AND_EXTRA = 2 * 0xFFFF  # bytes of the name and the extra field
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000


class ZipMember(NamedTuple):
    """A member as declared by the central directory; `end` is the offset of what follows it."""

    info: zipfile.ZipInfo
    end: int

    @property
    def name(self) -> str:
        return self.info.filename

    @property
    def range(self) -> tuple[int, int]:
        """Offsets that enclose header and content, however long the header's name and extra are."""
        start = self.info.header_offset
        longest = _LOCAL_HEADER_SIZE + _MAX_NAME_AND_EXTRA + self.info.compress_size
        return start, min(self.end, start + longest)


def is_zip(uri: str) -> bool:
    return uri.lower().endswith(".zip")


def split_uri(uri: str) -> tuple[str, str] | None:
    """The zip's URI and the member's name; None if `uri` names no member of a zip."""
    match = re.search(r"\.zip!/", uri, re.IGNORECASE)
    return (uri[: match.start() + 4], uri[match.end() :]) if match else None


def list_members(uri: str) -> list[ZipMember]:
    """All members except folders, in the order of the central directory.

    Raises:
        RejectedError: it is damaged or no zip.
        StorageError: it cannot be reached.
    """
    with storage.RandomAccessFile(uri) as file:
        return list(_read_directory(uri, file.size, file.etag)[0])


def read_member(uri: str, name: str) -> bytes:
    """The content of a member, checked against the size and CRC in the central directory.

    Raises:
        RejectedError: the member does not exist or is unusable; the message names it and the zip.
        StorageError: the zip cannot be reached.
    """
    with ZipReader([uri + MEMBER_SEPARATOR + name]) as members:
        return members.read(uri, name)


class ZipReader:
    """Reads many members, several of them per request; a context manager, safe to share by threads.

    Each zip is opened once, so all its members come from one version of it.

    Args:
        uris: of the members, in about the order in which they are read, all images before all
            masks. URIs of other files are ignored.
    """

    def __init__(self, uris: Iterable[str]) -> None:
        self._names: dict[str, list[str]] = {}
        for parts in map(split_uri, uris):
            if parts:
                self._names.setdefault(parts[0], []).append(parts[1])
        self._zips: dict[str, _OpenZip] = {}
        self._lock = threading.Lock()
        self._files = contextlib.ExitStack()

    def read(self, uri: str, name: str) -> bytes:
        """The content of a member; raises as `read_member`."""
        with self._lock:
            if uri not in self._zips:
                file = self._files.enter_context(storage.RandomAccessFile(uri))
                self._zips[uri] = _OpenZip(file, self._names.get(uri, []))
        return self._zips[uri].read(name)

    def __enter__(self) -> ZipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


class _OpenZip:
    """An open zip with a cache of the ranges read last."""

    def __init__(self, file: storage.RandomAccessFile, names: Iterable[str]) -> None:
        self._file = file
        self._members = _read_directory(file.uri, file.size, file.etag)[1]
        self._ranges = _coalesce_ranges(
            self._members[name] for name in names if name in self._members
        )
        self._cache: deque[tuple[tuple[int, int], bytes]] = deque(maxlen=_CACHED_RANGES)
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:
        label = f"{storage.basename(self._file.uri)}{MEMBER_SEPARATOR}{name}"
        member = self._members.get(name)
        if member is None:
            raise RejectedError(f"{label}: no such member in the zip")
        if error := find_error(member):
            raise RejectedError(f"{label}: {error}")
        own = first, last = member.range
        shared = start, end = self._ranges.get(name, own)
        if shared == own:
            return _decompress(label, member.info, self._file.read_at(start, end - start))
        with self._lock:  # else every thread would request the same range
            content = next((content for key, content in self._cache if key == shared), None)
            if content is None:
                content = self._file.read_at(start, end - start)
                self._cache.append((shared, content))
        return _decompress(label, member.info, content[first - start : last - start])


def _coalesce_ranges(members: Iterable[ZipMember]) -> dict[str, tuple[int, int]]:
    """Start and end of the range by which each member is read, by name."""
    groups: list[list[ZipMember]] = []
    for member in members:
        if find_error(member):
            continue
        start, end = member.range
        gap = start - groups[-1][-1].range[1] if groups else -1
        if 0 <= gap <= MAX_GAP and end - groups[-1][0].range[0] <= MAX_RANGE:
            groups[-1].append(member)
        else:
            groups.append([member])
    return {
        member.name: (group[0].range[0], group[-1].range[1]) for group in groups for member in group
    }


def find_error(member: ZipMember) -> str:
    """Why a member must not be read; "" if it may."""
    info, larger = member.info, max(member.info.file_size, member.info.compress_size)
    if info.flag_bits & _ENCRYPTED_FLAGS:
        return "encrypted; expected a member without password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {info.compress_type}; expected stored or deflate"
    if larger > MAX_BYTES:
        return f"declares {larger} bytes; expected at most {MAX_BYTES}"
    if info.file_size > max(RATIO_CHECK_MIN_BYTES, MAX_COMPRESSION_RATIO * info.compress_size):
        return f"declares {info.file_size} bytes in {info.compress_size}, too many for an image"
    if info.header_offset + _LOCAL_HEADER_SIZE + info.compress_size > member.end:
        return "overlaps the next member of the zip"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "symbolic link; expected a file"
    return ""


@functools.lru_cache(maxsize=32)
def _read_directory(
    uri: str, size: int, version: str
) -> tuple[list[ZipMember], Mapping[str, ZipMember]]:
    """All members in order, and the first one of each name."""
    try:
        with storage.RandomAccessFile(uri) as file, zipfile.ZipFile(_SeekableFile(file)) as opened:
            infos, end = opened.infolist(), opened.start_dir
    except StorageError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        raise RejectedError(
            f"{uri}: expected a complete zip, found {size} bytes that are not ({error}); download "
            "it again"
        ) from None
    offsets = sorted({info.header_offset for info in infos} | {end})

    def find_end(start: int) -> int:
        following = bisect.bisect_right(offsets, start)
        return offsets[following] if following < len(offsets) else start

    members = [
        ZipMember(info, find_end(info.header_offset))
        for info in infos
        if not info.filename.endswith("/")
    ]
    return members, {member.name: member for member in reversed(members)}


def _decompress(label: str, info: zipfile.ZipInfo, content: bytes) -> bytes:
    if len(content) < _LOCAL_HEADER_SIZE or not content.startswith(b"PK\3\4"):
        raise RejectedError(
            f"{label}: not at its offset in the zip's directory; download the zip again"
        )
    start = _LOCAL_HEADER_SIZE + sum(struct.unpack("<HH", content[26:_LOCAL_HEADER_SIZE]))
    data = content[start : start + info.compress_size]
    if info.compress_type == zipfile.ZIP_DEFLATED:
        try:
            # One byte more than declared is enough to detect a bomb without inflating it.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, info.file_size + 1)
        except zlib.error as error:
            raise RejectedError(f"{label}: damaged in the zip ({error})") from None
    if len(data) != info.file_size:
        found = "more" if len(data) > info.file_size else str(len(data))
        raise RejectedError(f"{label}: expected {info.file_size} bytes as declared, found {found}")
    if zlib.crc32(data) != info.CRC:
        raise RejectedError(f"{label}: damaged in the zip (CRC mismatch)")
    return data


class _SeekableFile(io.RawIOBase):
    """A stored file as `zipfile` needs it, which reads the central directory in one call."""

    def __init__(self, file: storage.RandomAccessFile) -> None:
        self._file = file
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}
        if origin[whence] + offset < 0:
            raise OSError("seek to before the start of the file")
        self._position = origin[whence] + offset
        return self._position

    def read(self, length: int = -1) -> bytes:
        length = self._file.size - self._position if length < 0 else length
        if length > MAX_BYTES:
            raise zipfile.BadZipFile(f"central directory of {length} bytes")
        content = self._file.read_at(self._position, length)
        self._position += len(content)
        return content

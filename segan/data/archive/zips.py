"""Members of zip files, read where the zip lies: nothing is unpacked, and no zip is read whole.

A member's URI is `<zip>.zip!/<name>`. The directory at the zip's end is read once in a process;
after that a member costs one ranged read, and small ones in a row one together. The standard
library reads the directory. It does not read members, because it asks for them in steps of a few
kilobytes, each a request in S3.
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
from segan.data.archive.images import RejectedError
from segan.errors import StorageError

MEMBER_SEPARATOR = "!/"
MAX_BYTES = 256 * 2**20  # bytes of a file or member; a photograph has a tenth of it
# Blank bitmaps shrink a thousandfold; what does and is large besides is made to fill memory.
RATIO_CHECK_MIN_BYTES = 2**20
MAX_COMPRESSION_RATIO = 200

# Bytes between two members that are read rather than asked around: a request costs about as much.
MAX_GAP = 256 * 2**10
MAX_RANGE = 4 * 2**20  # most bytes that are read together
_CACHED_RANGES = (
    4  # pieces of a zip: threads are in one or in the next already, of images and of masks
)

_LOCAL_HEADER_SIZE = 30  # bytes before a member's name, as it stands before its content
_MAX_NAME_AND_EXTRA = 2 * 0xFFFF  # of a name and what a header adds to it
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000


class ZipMember(NamedTuple):
    """A member as the zip's directory declares it; `end` is where the next thing starts."""

    name: str
    header_offset: int
    end: int
    compressed_size: int
    size: int
    crc: int
    method: int
    flags: int
    mode: int


def is_zip(uri: str) -> bool:
    return uri.lower().endswith(".zip")


def split_uri(uri: str) -> tuple[str, str] | None:
    """The zip's URI and the member's name; None for a URI that leads into no zip."""
    found = re.search(r"\.zip!/", uri, re.IGNORECASE)
    return (uri[: found.start() + 4], uri[found.end() :]) if found else None


def list_members(uri: str) -> list[ZipMember]:
    """Every member that is no folder, as they stand in the zip's directory.

    Raises:
        RejectedError: it is no whole zip.
        StorageError: it cannot be reached.
    """
    with storage.RandomAccessFile(uri) as file:
        return list(_read_directory(uri, file.size, file.etag)[0])


def read_member(uri: str, name: str) -> bytes:
    """A member's content, checked against size and CRC that the zip declares.

    Raises:
        RejectedError: there is no such member, or it cannot be used; the message names both.
        StorageError: the zip cannot be reached.
    """
    with ZipReader([uri + MEMBER_SEPARATOR + name]) as members:
        return members.read(uri, name)


class ZipReader:
    """Members that will be read; a context manager, which threads may share.

    Each zip is opened once and is of one version until the end. Where the next member lies shortly
    behind the one before, both are read by one request.

    Args:
        wanted: URIs in about the order in which they will be asked for, all images and then all
            masks; those of other files are passed over.
    """

    def __init__(self, uris: Iterable[str]) -> None:
        self._names: dict[str, list[str]] = {}
        for inside in map(split_uri, uris):
            if inside:
                self._names.setdefault(inside[0], []).append(inside[1])
        self._zips: dict[str, _OpenZip] = {}
        self._lock = threading.Lock()
        self._files = contextlib.ExitStack()

    def read(self, uri: str, name: str) -> bytes:
        """As of `read_member`."""
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
    """An open zip, and the pieces of it that were read last."""

    def __init__(self, file: storage.RandomAccessFile, names: Iterable[str]) -> None:
        self._file = file
        self._members = _read_directory(file.uri, file.size, file.etag)[1]
        self._ranges = _coalesce_ranges(
            self._members[name] for name in names if name in self._members
        )
        self._cache: deque[tuple[int, bytes]] = deque(maxlen=_CACHED_RANGES)
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes:
        where = f"{storage.basename(self._file.uri)}{MEMBER_SEPARATOR}{name}"
        member = self._members.get(name)
        if member is None:
            raise RejectedError(f"{where}: there is no such member in the zip")
        if fault := find_error(member):
            raise RejectedError(f"{where}: {fault}")
        own = member.header_offset, _content_end(member)
        start, stop = self._ranges.get(name, own)
        if (start, stop) == own:
            return _decompress(where, member, self._file.read_at(start, stop - start))
        with self._lock:  # or each thread would ask for the same piece
            piece = next((content for at, content in self._cache if at == start), None)
            if piece is None:
                piece = self._file.read_at(start, stop - start)
                self._cache.append((start, piece))
        return _decompress(where, member, piece[own[0] - start : own[1] - start])


def _coalesce_ranges(members: Iterable[ZipMember]) -> dict[str, tuple[int, int]]:
    """Where the piece begins and ends by which each member is read, by its name."""
    rows: list[list[ZipMember]] = []
    for member in members:
        if find_error(member):
            continue
        gap = member.header_offset - _content_end(rows[-1][-1]) if rows else -1
        if 0 <= gap <= MAX_GAP and _content_end(member) - rows[-1][0].header_offset <= MAX_RANGE:
            rows[-1].append(member)
        else:
            rows.append([member])
    return {one.name: (row[0].header_offset, _content_end(row[-1])) for row in rows for one in row}


def _content_end(member: ZipMember) -> int:
    """Where a member's content has ended; its header's length is not known before it is read."""
    return min(
        member.end,
        member.header_offset + _LOCAL_HEADER_SIZE + _MAX_NAME_AND_EXTRA + member.compressed_size,
    )


def find_error(member: ZipMember) -> str:
    """Why a member must not be read, or nothing."""
    if member.flags & _ENCRYPTED_FLAGS:
        return "encrypted; expected a member that needs no password"
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"packed by method {member.method}; expected a stored or deflated member"
    if max(member.size, member.compressed_size) > MAX_BYTES:
        most = max(member.size, member.compressed_size)
        return f"declares {most} bytes; expected at most {MAX_BYTES}"
    if member.size > max(RATIO_CHECK_MIN_BYTES, MAX_COMPRESSION_RATIO * member.compressed_size):
        return f"declares {member.size} bytes in {member.compressed_size}, too many to be an image"
    if member.header_offset + _LOCAL_HEADER_SIZE + member.compressed_size > member.end:
        return "overlaps what follows it in the zip"
    if stat.S_ISLNK(member.mode):
        return "a link; expected a file"
    return ""


@functools.lru_cache(maxsize=32)
def _read_directory(
    uri: str, size: int, version: str
) -> tuple[list[ZipMember], Mapping[str, ZipMember]]:
    try:
        with storage.RandomAccessFile(uri) as file, zipfile.ZipFile(_SeekableFile(file)) as opened:
            infos, end = opened.infolist(), opened.start_dir
    except StorageError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        raise RejectedError(
            f"{uri}: expected a whole zip, found {size} bytes that are none ({error}); fetch it "
            "again"
        ) from None
    starts = sorted({info.header_offset for info in infos} | {end})
    members = [_to_member(info, starts) for info in infos if not info.filename.endswith("/")]
    by_name: dict[str, ZipMember] = {}
    for member in members:
        by_name.setdefault(member.name, member)
    return members, by_name


def _to_member(info: zipfile.ZipInfo, starts: list[int]) -> ZipMember:
    start = info.header_offset
    following = bisect.bisect_right(starts, start)
    return ZipMember(
        name=info.filename,
        header_offset=start,
        end=starts[following] if following < len(starts) else start,
        compressed_size=info.compress_size,
        size=info.file_size,
        crc=info.CRC,
        method=info.compress_type,
        flags=info.flag_bits,
        mode=info.external_attr >> 16,
    )


def _decompress(where: str, member: ZipMember, content: bytes) -> bytes:
    if len(content) < _LOCAL_HEADER_SIZE or not content.startswith(b"PK\3\4"):
        raise RejectedError(f"{where}: not where the zip's directory says; fetch the zip again")
    start = _LOCAL_HEADER_SIZE + sum(struct.unpack("<HH", content[26:_LOCAL_HEADER_SIZE]))
    packed = content[start : start + member.compressed_size]
    if member.method == zipfile.ZIP_DEFLATED:
        try:
            # One byte more than declared tells a member that holds more, and no bomb goes off.
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.size + 1)
        except zlib.error as error:
            raise RejectedError(f"{where}: damaged in the zip ({error})") from None
    else:
        unpacked = packed
    if len(unpacked) != member.size:
        found = "more" if len(unpacked) > member.size else str(len(unpacked))
        raise RejectedError(f"{where}: expected {member.size} bytes as declared, found {found}")
    if zlib.crc32(unpacked) != member.crc:
        raise RejectedError(f"{where}: damaged in the zip (its CRC is another)")
    return unpacked


class _SeekableFile(io.RawIOBase):
    """A stored file as `zipfile` asks for one; it reads the directory in one piece by itself."""

    def __init__(self, file: storage.RandomAccessFile) -> None:
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}
        if origin[whence] + offset < 0:
            raise OSError("before the start of the file")
        self._position = origin[whence] + offset
        return self._position

    def read(self, length: int = -1) -> bytes:
        length = self._file.size - self._position if length < 0 else length
        if length > MAX_BYTES:
            raise zipfile.BadZipFile(f"its directory would have {length} bytes")
        content = self._file.read_at(self._position, length)
        self._position += len(content)
        return content

"""Reading of zip members in storage, and rejects by name."""

import contextlib
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from segan import storage
from segan.data.archive import zips
from segan.errors import NotFoundError, RejectedError, StorageError

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
CONTENT = bytes(range(256)) * 40
# Offsets of fields in a member's local header and in its directory entry.
FLAGS, METHOD, CRC, PACKED, SIZE = (6, 8), (8, 10), (14, 16), (18, 20), (22, 24)
START = 42


def make_zip(*members: tuple[str, bytes], method: int = DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as out, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a duplicate name
        for name, body in members:
            out.writestr(zipfile.ZipInfo(name), body, method)
    return content.getvalue()


def patch_field(content: bytes, field: tuple[int, int], value: int, form: str) -> bytes:
    """Sets a field of the only member, in its header and in the directory."""
    out, directory = bytearray(content), content.rindex(b"PK\1\2")
    struct.pack_into(form, out, field[0], value)
    struct.pack_into(form, out, directory + field[1], value)
    return bytes(out)


def save(tmp_path: Path, content: bytes, name: str = "a.zip") -> str:
    (tmp_path / name).write_bytes(content)
    return str(tmp_path / name)


def error_message(uri: str, name: str) -> str:
    with pytest.raises(RejectedError) as caught:
        zips.read_member(uri, name)
    return str(caught.value)


# Reading


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.integration)])
def test_members_are_read_as_written(
    where: str, method: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = str(tmp_path) if where == "local" else request.getfixturevalue("bucket")
    members = [("x/ü.jpg", CONTENT), ("x/empty.png", b""), ("y.txt", b"y")]
    uri = f"{place}/a.zip"
    storage.write_bytes(uri, make_zip(*members, method=method))
    assert [member.name for member in zips.list_members(uri)] == [name for name, _ in members]
    for name, content in members:
        assert zips.read_member(uri, name) == content


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text("abc/.", min_size=1, max_size=6).filter(lambda name: not name.endswith("/")),
        st.binary(max_size=300),
        max_size=5,
    ),
    st.sampled_from([STORED, DEFLATED]),
)
def test_members_are_those_that_zipfile_writes(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], method: int
) -> None:
    uri = save(tmp_path_factory.mktemp("zip"), make_zip(*files.items(), method=method))
    assert {m.name: zips.read_member(uri, m.name) for m in zips.list_members(uri)} == files


class RecordingFile(storage.RandomAccessFile):
    """Records offset and length of each read."""

    reads: list[tuple[int, int]]

    def read_at(self, start: int, length: int) -> bytes:
        self.reads.append((start, length))
        return super().read_at(start, length)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Offset and length of all reads; a directory that is cached is not read again."""
    monkeypatch.setattr(RecordingFile, "reads", [], raising=False)
    monkeypatch.setattr(storage, "RandomAccessFile", RecordingFile)
    return RecordingFile.reads


def test_neighbouring_members_share_a_request(
    tmp_path: Path, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers have 30 bytes and a name of one: 131 bytes each, from 0, 131, 262, ..., 655."""
    monkeypatch.setattr(zips, "MAX_GAP", 131)
    files = {name: name.encode() * 100 for name in "abcdef"}
    uri = save(tmp_path, make_zip(*files.items(), method=STORED))
    zips.list_members(uri)
    reads.clear()
    wanted = ["a", "c", "f"]  # one member between the first two, two before the last
    with zips.ZipReader([f"{uri}!/{name}" for name in wanted] + ["/else.jpg"]) as members:
        for name in [*wanted, "a", "b"]:  # in another order too, and one that was not announced
            assert members.read(uri, name) == files[name]
    assert reads == [(0, 393), (655, 131), (131, 131)]


def test_a_range_has_a_maximum_size(
    tmp_path: Path, reads: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zips, "MAX_RANGE", 300)
    files = {name: name.encode() * 100 for name in "abcde"}
    uri = save(tmp_path, make_zip(*files.items(), method=STORED))
    zips.list_members(uri)
    reads.clear()
    with zips.ZipReader(f"{uri}!/{name}" for name in files) as members:
        assert [members.read(uri, name) for name in files] == [*files.values()]
    assert reads == [(0, 262), (262, 262), (524, 131)]


@settings(max_examples=40)
@example(files=dict.fromkeys("dea", b""), announced=[*"dade"], gap=33, piece=99)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.binary(max_size=300), min_size=1),
    st.lists(st.sampled_from("abcdefgh"), max_size=12),
    st.integers(0, 500),
    st.integers(0, 1000),
)
def test_members_do_not_depend_on_the_announced_uris(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, bytes],
    announced: list[str],
    gap: int,
    piece: int,
) -> None:
    uri = save(tmp_path_factory.mktemp("zip"), make_zip(*files.items()))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(3) as threads:
        patch.setattr(zips, "MAX_GAP", gap)
        patch.setattr(zips, "MAX_RANGE", piece)
        with zips.ZipReader(f"{uri}!/{name}" for name in announced) as members:
            read = threads.map(lambda name: members.read(uri, name), files)
            assert dict(zip(files, read, strict=True)) == files


def test_a_zip_written_without_knowing_sizes_is_read(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise OSError("a pipe")

        def tell(self) -> int:
            raise OSError("a pipe")

    content = Pipe()
    with zipfile.ZipFile(content, "w", DEFLATED) as out:
        out.writestr("x.jpg", CONTENT)
        out.writestr("y.jpg", b"y")
    uri = save(tmp_path, content.getvalue())
    assert zips.read_member(uri, "x.jpg") == CONTENT
    assert zips.read_member(uri, "y.jpg") == b"y"


@pytest.mark.parametrize(("before", "comment"), [(b"#!/bin/sh\n", b""), (b"", b"made by hand")])
def test_bytes_before_a_zip_and_its_comment_are_ignored(
    tmp_path: Path, before: bytes, comment: bytes
) -> None:
    content = io.BytesIO(before)
    content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content, "a") as out:
        out.writestr("x.jpg", CONTENT)
        out.comment = comment
    assert zips.read_member(save(tmp_path, content.getvalue()), "x.jpg") == CONTENT


def test_an_empty_zip_has_no_members(tmp_path: Path) -> None:
    assert zips.list_members(save(tmp_path, make_zip())) == []


def test_a_replaced_zip_is_detected(tmp_path: Path) -> None:
    uri = save(tmp_path, make_zip(("x.jpg", b"one"), method=STORED))
    assert zips.read_member(uri, "x.jpg") == b"one"
    storage.write_bytes(uri, make_zip(("x.jpg", b"two"), method=STORED))
    assert zips.read_member(uri, "x.jpg") == b"two"


@pytest.mark.integration
def test_a_replaced_zip_in_a_bucket_is_detected(bucket: str) -> None:
    uri = f"{bucket}/a.zip"
    for body in (b"one", b"two"):  # of the same size, within a second
        storage.write_bytes(uri, make_zip(("x.jpg", body), method=STORED))
        assert zips.read_member(uri, "x.jpg") == body


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://b/a.zip!/x/y.jpg", ("s3://b/a.zip", "x/y.jpg")),
        ("/d/A.ZIP!/x.zip!/y", ("/d/A.ZIP", "x.zip!/y")),
        ("/d/a.zip", None),
        ("/d/a!/x.jpg", None),
    ],
)
def test_a_members_uri_has_two_parts(uri: str, parts: tuple[str, str] | None) -> None:
    assert zips.split_uri(uri) == parts


# Rejects

Damage = Callable[[bytes], bytes]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "encrypted": (lambda c: patch_field(c, FLAGS, 1, "<H"), "encrypted; expected a member without"),
    "packed otherwise": (
        lambda c: patch_field(c, METHOD, 9, "<H"),
        "compression method 9; expected stored",
    ),
    "too large": (
        lambda c: patch_field(c, SIZE, 2**28 + 1, "<L"),
        "declares 268435457 bytes; expected at most 268435456",
    ),
    "too large, packed": (
        lambda c: patch_field(c, PACKED, 2**28 + 1, "<L"),
        "declares 268435457 bytes",
    ),
    "a ratio that no image has": (
        lambda c: patch_field(c, SIZE, 2**28, "<L"),
        "declares 268435456 bytes in ",
    ),
    "more than declared": (
        lambda c: patch_field(c, SIZE, 10239, "<L"),
        "expected 10239 bytes as declared, found more",
    ),
    "less than declared": (
        lambda c: patch_field(c, SIZE, 10241, "<L"),
        "expected 10241 bytes as declared, found 10240",
    ),
    "longer than its place": (
        lambda c: patch_field(c, PACKED, 10_000, "<L"),
        "overlaps the next member of the zip",
    ),
    "another CRC": (
        lambda c: patch_field(c, CRC, 7, "<L"),
        "damaged in the zip (CRC mismatch)",
    ),
    "damaged": (lambda c: c[:40] + b"\xff" * 20 + c[60:], "damaged in the zip (Error -3"),
    "no header": (lambda c: b"XX" + c[2:], "not at its offset in the zip's directory"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_bad_member_is_refused_by_name(tmp_path: Path, damage: Damage, reason: str) -> None:
    uri = save(tmp_path, damage(make_zip(("x.jpg", CONTENT))))
    assert error_message(uri, "x.jpg").startswith(f"a.zip!/x.jpg: {reason}")


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    uri = save(tmp_path, make_zip(("x.jpg", b"")))
    assert error_message(uri, "y.jpg") == "a.zip!/y.jpg: no such member in the zip"


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link, content = zipfile.ZipInfo("x.jpg"), io.BytesIO()
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(content, "w") as out:
        out.writestr(link, "/etc/passwd")
    assert error_message(save(tmp_path, content.getvalue()), "x.jpg").endswith(
        "symbolic link; expected a file"
    )


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    content = bytearray(make_zip(("x.jpg", CONTENT), ("y.jpg", CONTENT)))
    struct.pack_into("<L", content, content.rindex(b"PK\1\2") + START, 2)
    uri = save(tmp_path, bytes(content))
    assert "overlaps the next member" in error_message(uri, "x.jpg")


def test_a_zip_bomb_is_not_inflated(tmp_path: Path) -> None:
    # 2**27 zeros compress to 130 KB; of 1,000 declared bytes, 1,001 are inflated.
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packer.compress(bytes(2**27)) + packer.flush()
    content = patch_field(make_zip(("x.jpg", body), method=STORED), METHOD, DEFLATED, "<H")
    uri = save(tmp_path, patch_field(content, SIZE, 1000, "<L"))
    assert error_message(uri, "x.jpg").endswith("expected 1000 bytes as declared, found more")


def test_a_blank_bitmap_is_no_bomb(tmp_path: Path) -> None:
    blank = bytes(700_000)  # deflate compresses it to about 700
    assert zips.read_member(save(tmp_path, make_zip(("x.bmp", blank))), "x.bmp") == blank


TWO_MEMBERS = make_zip(("x.jpg", CONTENT), ("y.jpg", CONTENT))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"no zip" * 100, TWO_MEMBERS[:-30], TWO_MEMBERS[: len(TWO_MEMBERS) // 2]],
)
def test_an_incomplete_zip_says_so(tmp_path: Path, content: bytes) -> None:
    uri = save(tmp_path, content)
    with pytest.raises(RejectedError) as caught:
        zips.list_members(uri)
    said = str(caught.value)
    assert said.startswith(
        f"{uri}: expected a complete zip, found {len(content)} bytes that are not"
    )
    assert said.endswith("download it again")


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_zip_gives_what_was_packed_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(TWO_MEMBERS)
    for _ in range(data.draw(st.integers(1, 4))):
        # Prefers the directory, where damage has the most effects.
        at = data.draw(
            st.integers(0, len(content) - 1) | st.integers(len(content) - 125, len(content) - 1)
        )
        content[at] = data.draw(st.integers(0, 255))
    uri = save(tmp_path_factory.mktemp("zip"), bytes(content))
    try:
        members = zips.list_members(uri)
    except RejectedError:
        return
    for member in members:
        with contextlib.suppress(RejectedError):
            assert zips.read_member(uri, member.name) == CONTENT


def test_a_zip_without_its_start_gives_the_remaining_members(tmp_path: Path) -> None:
    uri = save(tmp_path, TWO_MEMBERS[50:])
    assert "x.jpg: not at its offset in the zip's directory" in error_message(uri, "x.jpg")
    assert zips.read_member(uri, "y.jpg") == CONTENT


def test_a_missing_zip_is_not_a_damaged_zip(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        zips.list_members(f"{tmp_path}/a.zip")
    (tmp_path / "b.zip").mkdir()
    with pytest.raises(StorageError):
        zips.list_members(f"{tmp_path}/b.zip")

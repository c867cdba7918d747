"""CSV tables: rows become pairs or rejects; an invalid header is an error."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segan import storage
from segan.data.archive.reader import Archive, Pair, open_archive, read_file
from segan.errors import RejectedError, SeganError, StorageError

ROW = "a.jpg,a.png"


def read_csv(folder: Path, *lines: str, encoding: str = "utf-8") -> Archive:
    (folder / "list.csv").write_bytes("\n".join(lines).encode(encoding))
    return open_archive(f"{folder}/list.csv")


def error_message(folder: Path, *lines: str) -> str:
    with pytest.raises(SeganError) as caught:
        read_csv(folder, *lines)
    return str(caught.value)


def test_every_column_is_used(tmp_path: Path) -> None:
    archive = read_csv(
        tmp_path,
        "image,mask,split,id,group",
        "x/a.jpg,y/a.png,validation,one,patient 4",
        "/else/b.jpg,all.zip!/b.png,train,two,",
    )
    assert archive.rejects == []
    assert archive.pairs == [
        Pair("two", "train", "/else/b.jpg", f"{tmp_path}/all.zip!/b.png"),
        Pair("one", "validation", f"{tmp_path}/x/a.jpg", f"{tmp_path}/y/a.png", "patient 4"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "img/1.jpg",
        "./img/1.jpg",
        "img//1.jpg",
        "img/../img/1.jpg",
        "{0}/img/1.jpg",
        "file://{0}/img/1.jpg",
    ],
)
def test_a_name_may_be_written_in_any_form(tmp_path: Path, name: str) -> None:
    (tmp_path / "table.csv").write_text(f"image,mask\n{name.format(tmp_path)},m.png\n")
    archive = open_archive(str(tmp_path / "table.csv"))
    assert archive.rejects == []
    assert [pair.image for pair in archive.pairs] == [f"{tmp_path}/img/1.jpg"]


@pytest.mark.parametrize("name", ["../1.jpg", "img/../../1.jpg", "./../1.jpg", "..", "."])
def test_a_name_outside_the_tables_folder_is_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / "table.csv").write_text(f"image,mask\n{name},m.png\n")
    archive = open_archive(str(tmp_path / "table.csv"))
    assert (len(archive.pairs), len(archive.rejects)) == (0, 1)


def test_image_and_mask_are_enough(tmp_path: Path) -> None:
    (pair,) = read_csv(tmp_path, "mask,image", "m.png,x/photo.17.jpeg").pairs
    assert pair == Pair("photo.17", "train", f"{tmp_path}/x/photo.17.jpeg", f"{tmp_path}/m.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_as_spreadsheets_write_them(tmp_path: Path, encoding: str) -> None:
    lines = (" Image ,MASK,age\r", '"ä, 1.jpg", a.png ,40\r', ",,\r", "\r", "b.jpg,b.png,\r", "")
    archive = read_csv(tmp_path, *lines, encoding=encoding)
    assert [pair.image for pair in archive.pairs] == [f"{tmp_path}/b.jpg", f"{tmp_path}/ä, 1.jpg"]
    assert archive.rejects == []


@pytest.mark.parametrize(
    ("row", "split", "reason"),
    [
        ("a.jpg,a.png,train", "", "expected 4 fields, found 3"),
        ("a.jpg,a.png,train,a,b", "", "expected 4 fields, found 5"),
        (",a.png,train,a", "train", "image: expected a name or a URI, found nothing"),
        ("a.jpg,,test,a", "test", "mask: expected a name or a URI, found nothing"),
        ("a.jpg,a.png,val,a", "", "split: expected train, validation, test, found 'val'"),
        ("a.jpg,a.png,,a", "", "split: expected train, validation, test, found ''"),
        ("a.jpg,a.png,train,a/b", "train", "id: expected a name without slashes, found 'a/b'"),
        ("../a.jpg,a.png,train,a", "train", "image: expected a name below the table's folder"),
        ("a.jpg,x/../../a.png,train,a", "train", "mask: expected a name below the table's folder"),
        ("~/a.jpg,a.png,train,a", "train", "image: expected a name below the table's folder"),
        ("http://h/a.jpg,a.png,train,a", "train", "image: expected a name below the table's"),
        ("x\\a.jpg,a.png,train,a", "train", "image: expected a name below the table's folder"),
        ("s3://,a.png,train,a", "train", "image: expected a name below the table's folder"),
        ("b.jpg,b.png,train,good", "train", "id: expected a unique id, found 'good' as on line 2"),
    ],
)
def test_a_row_that_cannot_be_used_is_a_reject(
    tmp_path: Path, row: str, split: str, reason: str
) -> None:
    archive = read_csv(tmp_path, "image,mask,split,id", "g.jpg,g.png,train,good", row)
    (reject,) = archive.rejects
    assert (reject["name"], reject["split"]) == ("list.csv, line 3", split)
    assert reject["reason"].startswith(reason)
    assert [pair.id for pair in archive.pairs] == ["good"]
    assert archive.num_inputs == 2


def test_credentials_in_a_uri_are_not_shown(tmp_path: Path) -> None:
    (reject,) = read_csv(tmp_path, "image,mask", "s3://me:mellon@bucket/a.jpg,a.png").rejects
    assert "mellon" not in str(reject)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("image", "found no mask, but image"),
        ("photo,truth", "found no image and no mask, but photo, truth"),
        ("image;mask", "found no image and no mask, but image;mask"),
        ("", "found no image and no mask, but nothing"),
        ("image,mask,image", "found image twice"),
        ("image,mask,groups", "found 'groups': rename it to group or to something else"),
    ],
)
def test_a_wrong_header_is_an_error(tmp_path: Path, header: str, found: str) -> None:
    said = error_message(tmp_path, header, ROW if header else "")
    assert said.startswith(f"{tmp_path}/list.csv, line 1: expected the columns image and mask")
    assert said.endswith(found)


def test_an_invalid_table_says_why(tmp_path: Path) -> None:
    assert error_message(tmp_path, "image,mask").endswith(
        "expected a row per pair below the header"
    )
    assert "line 3: expected CSV (" in error_message(tmp_path, "image,mask", ROW, '"a.jpg,b.png')
    (tmp_path / "list.csv").write_bytes(b"image,mask\n\xff,b")
    with pytest.raises(SeganError, match=r"list\.csv: expected UTF-8, found other bytes"):
        open_archive(f"{tmp_path}/list.csv")


@given(st.lists(st.lists(st.sampled_from(["", "a", "../b", "c\nd", '"', "x" * 9]), max_size=4)))
def test_every_row_is_a_pair_or_a_reject(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    quoted = [",".join('"' + v.replace('"', '""') + '"' for v in row) for row in rows]
    written = sum(any(value.strip() for value in row) for row in rows)
    lines = ("image,mask,id", "i.jpg,m.png,first", *quoted)
    assert read_csv(tmp_path_factory.mktemp("t"), *lines).num_inputs == written + 1


def test_a_missing_file_of_a_row_is_rejected_when_read(tmp_path: Path) -> None:
    (pair,) = read_csv(tmp_path, "image,mask", ROW).pairs
    with pytest.raises(RejectedError, match=r"^a\.jpg: not found"):
        read_file(pair.image)


@pytest.mark.integration
def test_a_table_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    text = f"image,mask\nx/a.jpg,{bucket}/y/a.png\n"
    storage.write_bytes(f"{bucket}/t/list.csv", text.encode())
    storage.write_bytes(f"{bucket}/t/x/a.jpg", b"image")
    storage.write_bytes(f"{bucket}/y/a.png", b"mask")
    (pair,) = open_archive(f"{bucket}/t/list.csv").pairs
    assert (read_file(pair.image), read_file(pair.mask or "")) == (b"image", b"mask")
    with pytest.raises(StorageError, match="s3://absent-bucket: bucket does not exist"):
        read_csv(tmp_path, "image,mask", "s3://absent-bucket/a.jpg,a.png")

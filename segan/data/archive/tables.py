"""Archives of any layout, listed in a CSV table of images and masks.

    image,mask,split,id,group
    photographs/17.jpg,masks/17.png,train,17,patient 4

`image` and `mask` are names below the table's folder (zip members too, as `all.zip!/17.jpg`),
absolute paths, or `file://` or `s3://` URIs. Defaults of the other columns: `split` is train, `id`
the image's name without extension, `group` empty. Several classes have a column `mask:NAME` each in
place of `mask`; or `mask` names label images, whose values a file of classes names.
"""

from __future__ import annotations

import csv
import difflib
import io
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from segan import storage
from segan.data.archive.label_classes import CLASSES_FILE, LabelClasses, check_names, read_classes
from segan.data.archive.pairs import Archive, Pair, make_reject
from segan.errors import SeganError, UsageError

REQUIRED_COLUMNS = ("image", "mask")
OPTIONAL_COLUMNS = ("split", "id", "group")
CLASS_PREFIX = "mask:"  # of the columns of classes
SPLITS = ("train", "validation", "test")


def read_table(uri: str, classes: LabelClasses | None = None) -> Archive:
    """The pairs listed in a CSV file; unusable rows are among the rejects.

    Args:
        classes: of label images; None for those of classes.yaml beside the table, if it is there
            and describes label images.

    Raises:
        SeganError: it is no CSV in UTF-8, has no rows, or its header lacks or misspells a column.
        StorageError: it, or a bucket that it names, cannot be reached.
    """
    folder, _, table = uri.rpartition("/")
    columns, rows = _parse(uri)
    archive = Archive(uri, classes=_choose_classes(uri, columns, classes))
    used: dict[tuple[str, str], int] = {}
    for line, values in rows:
        name, split = f"{table}, line {line}", ""
        try:
            if len(values) != len(columns):
                raise UsageError(f"expected {len(columns)} fields, found {len(values)}")
            row = dict(zip(columns, (value.strip() for value in values), strict=True))
            split = row.get("split", "train")
            pair = _make_pair(folder, row)
            first = used.setdefault((pair.split, pair.id), line)
            if first != line:
                raise UsageError(f"id: expected a unique id, found {pair.id!r} as on line {first}")
            archive.pairs.append(pair)
        except UsageError as error:
            archive.rejects.append(make_reject(name, split if split in SPLITS else "", str(error)))
    if not archive.num_inputs:
        raise SeganError(f"{uri}: no images found; expected a row per pair below the header")
    for bucket in sorted(_buckets(archive.pairs)):
        storage.check_access(bucket)
    archive.pairs.sort(key=lambda pair: (pair.split, pair.id))
    return archive


def _choose_classes(
    uri: str, columns: Sequence[str], given: LabelClasses | None
) -> LabelClasses | None:
    """The classes of a table: of its columns, or those of its label images."""
    names = [c.removeprefix(CLASS_PREFIX) for c in columns if c.startswith(CLASS_PREFIX)]
    try:
        own = LabelClasses(check_names(names)) if names else None
    except UsageError as error:
        raise SeganError(f"{uri}: {error}") from None
    if given and (own or not given.values):
        raise UsageError(
            f"{uri}: a table has a column mask:NAME for each class, and no file of classes; or its "
            "column mask names label images, and the file gives each class a label value"
        )
    if own or given:
        return own or given
    beside = storage.join(uri.rpartition("/")[0], CLASSES_FILE)
    found = read_classes(beside) if storage.exists(beside) else None
    return found if found and found.values else None


def _parse(uri: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns, and the rows that are not blank, each with the number of its last line."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SeganError(f"{uri}: expected UTF-8, found other bytes ({error.reason})") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise SeganError(f"{uri}, line {reader.line_num}: expected CSV ({error})") from None
    columns = [column.strip().lower() for column in rows[0][1]] if rows else []
    _check_header(f"{uri}, line {rows[0][0] if rows else 1}", columns)
    return columns, rows[1:]


def _check_header(header: str, columns: Sequence[str]) -> None:
    shown = ", ".join(columns) or "nothing"
    where = f"{header}: expected the columns {' and '.join(REQUIRED_COLUMNS)}"
    masks = [column for column in columns if column.startswith(CLASS_PREFIX)]
    if masks and "mask" in columns:
        raise SeganError(f"{where}, or one {CLASS_PREFIX}NAME for each class; found both")
    if masks:
        columns = [column for column in columns if column not in masks] + ["mask"]
    where += f" (optional: {', '.join(OPTIONAL_COLUMNS)}), separated by commas"
    if missing := [column for column in REQUIRED_COLUMNS if column not in columns]:
        raise SeganError(f"{where}; found no {' and no '.join(missing)}, but {shown}")
    for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
        if columns.count(column) > 1:
            raise SeganError(f"{where}; found {column} twice")
    # A misspelt `group` would silently split groups.
    for column in set(columns) - {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS}:
        if close := difflib.get_close_matches(column, OPTIONAL_COLUMNS, 1, 0.8):
            raise SeganError(
                f"{where}; found {column!r}: rename it to {close[0]} or to something else"
            )


def _make_pair(folder: str, row: Mapping[str, str]) -> Pair:
    """The pair of a row; raises UsageError if the row is unusable."""
    image = _resolve(folder, "image", row["image"])
    columns = [column for column in row if column.startswith(CLASS_PREFIX)] or ["mask"]
    masks = [_resolve(folder, column, row[column]) for column in columns]
    split = row.get("split", "train")
    if split not in SPLITS:
        raise UsageError(f"split: expected {', '.join(SPLITS)}, found {split!r}")
    sample_id = row.get("id") or PurePosixPath(image).stem
    if "/" in sample_id or "\\" in sample_id or not sample_id.isprintable():
        raise UsageError(f"id: expected a name without slashes, found {sample_id!r}")
    group = row.get("group", "")
    if columns == ["mask"]:
        return Pair(sample_id, split, image, masks[0], group)
    return Pair(sample_id, split, image, None, group, tuple(masks))


def _resolve(folder: str, column: str, value: str) -> str:
    if not value:
        raise UsageError(f"{column}: expected a name or a URI, found nothing")
    try:
        if value.startswith("/") or "://" in value:
            return storage.normalise(value)
        # ./a.jpg, as find writes it, and a//b.jpg; what leads outside still does.
        return storage.join(folder, posixpath.normpath(value))
    except UsageError as error:
        raise UsageError(
            f"{column}: expected a name below the table's folder, an absolute path or an s3:// "
            f"URI ({error})"
        ) from None


def _buckets(pairs: Sequence[Pair]) -> set[str]:
    uris = [uri for pair in pairs for uri in (pair.image, *pair.mask_files)]
    return {f"s3://{urlsplit(uri).netloc}" for uri in uris if storage.is_s3(uri)}

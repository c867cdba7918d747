"""Opens archives of images and masks: pairs the files, and reads them.

An archive is a local folder or an `s3://` prefix in a layout of `segan.data.archive.layouts`, a zip
or a folder of zips in such a layout, or a CSV table of URIs (`segan.data.archive.tables`).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from PIL import Image

from segan import storage
from segan.data.archive import class_masks, layouts, tables, zips
from segan.data.archive.images import decode_image
from segan.data.archive.label_classes import (
    CLASSES_FILE,
    LabelClasses,
    parse_classes,
    read_classes,
)
from segan.data.archive.layouts import MASK_SUFFIX
from segan.data.archive.pairs import Archive, Pair, check_rejects, make_reject
from segan.data.archive.sources import FileEntry, Listing, list_folder, list_zip
from segan.errors import NotFoundError, RejectedError, SeganError, StorageError, UsageError

__all__ = [
    "MASK_SUFFIX",
    "Archive",
    "Pair",
    "check_rejects",
    "open_archive",
    "read_file",
    "read_image",
    "read_masks",
]

_EXPECTED = (
    "expected folders such as ISIC-2017_Training_Data with .jpg files and "
    "ISIC-2017_Training_Part1_GroundTruth with _segmentation.png files, zips of such folders, or "
    "a .csv with the columns image and mask"
)

_Key = tuple[str, str, str]  # split, id, dataset
_FilesByKey = dict[_Key, tuple[FileEntry, layouts.FileRole]]


def open_archive(uri: str, classes: str = "") -> Archive:
    """Lists an archive and pairs its images with its masks; opens no image.

    Several label maps are described by `segan.data.archive.label_classes`: in the file `classes`,
    or else in classes.yaml in the archive's folder, or by a table's columns `mask:NAME`.

    Files that match no layout (superpixels, CSV files, licences) are ignored. Every other file is
    in a pair or among the rejects, with a reason: an image without mask, a link out of the folder,
    a damaged zip.

    Args:
        uri: a folder, an `s3://` prefix, a `.zip` or a `.csv`.
        classes: a file, or the name of a description that comes with segan; "" without one.

    Raises:
        UsageError: `classes`, or the archive's classes.yaml, cannot be used.
        SeganError: it contains no images, or is a damaged zip, or a table without the required
            columns.
        StorageError: it cannot be reached.
    """
    uri = storage.normalise(uri)
    storage.check_access(uri)
    given = read_classes(classes) if classes else None
    if uri.lower().endswith(".csv") and storage.exists(uri):
        return tables.read_table(uri, given)
    if zips.is_zip(uri) and storage.exists(uri):
        return _pair_files(uri, list_zip(uri), given)
    if not storage.is_s3(uri) and os.path.isfile(uri):
        raise SeganError(f"{uri}: no images found; {_EXPECTED}; found another kind of file")
    listing = list_folder(uri)
    return _pair_files(uri, listing, given or _find_classes(listing))


def _find_classes(listing: Listing) -> LabelClasses | None:
    """The classes of an archive whose folder has CLASSES_FILE."""
    found = next((entry for entry in listing.entries if entry.name == CLASSES_FILE), None)
    if found is None:
        return None
    try:
        return parse_classes(storage.read_limited(found.uri))
    except UsageError as error:
        raise UsageError(f"{found.uri}: {error}") from None


def read_file(uri: str, read_member: Callable[[str, str], bytes] = zips.read_member) -> bytes:
    """The content of an archive's file or zip member.

    Args:
        read_member: `read` of a `segan.data.archive.zips.ZipReader`, to read many members.

    Raises:
        RejectedError: it does not exist, is too large, or is damaged in its zip; or a local file
            cannot be read, for example for lack of permission.
        StorageError: its bucket cannot be reached.
    """
    zip_and_member = zips.split_uri(uri)
    try:
        if zip_and_member:
            return read_member(*zip_and_member)
        content, size = _read_at_most(uri, zips.MAX_BYTES)
        if content is not None:
            return content
        reason = f"{size} bytes; expected at most {zips.MAX_BYTES}"
    except NotFoundError:
        reason = "not found"
    except StorageError as error:
        # An error of a bucket concerns all its files; one of a local file this one alone.
        if storage.is_s3(uri):
            raise
        reason = str(error).removeprefix(f"{zip_and_member[0] if zip_and_member else uri}: ")
    raise RejectedError(f"{storage.basename(uri)}: {reason}")


def read_image(uri: str) -> Image.Image:
    """An upright image in RGB; raises as `read_file` and `decode_image`."""
    return decode_image(storage.basename(uri), read_file(uri))


def read_masks(pair: Pair, size: tuple[int, int], classes: LabelClasses | None) -> np.ndarray:
    """The masks of a pair, bool [classes, H, W]; raises as `read_file` and `decode_masks`.

    Args:
        size: expected (width, height) in pixels, those of its image.
        classes: of its archive.
    """
    contents = [read_file(uri) if uri else b"" for uri in pair.mask_files]
    masks: np.ndarray = class_masks.decode_masks(pair, contents, size, size, classes) != 0
    return masks


def _read_at_most(uri: str, max_bytes: int) -> tuple[bytes | None, str]:
    """A file's content, or None if it exceeds `max_bytes`, and its size for a message."""
    if storage.is_s3(uri):  # one request; asking for the size first would be a second one
        content = bytearray()
        for chunk in storage.read_chunks(uri):
            content += chunk
            if len(content) > max_bytes:
                return None, f"more than {max_bytes}"
        return bytes(content), str(len(content))
    with storage.RandomAccessFile(uri) as file:
        return file.read_at(0, file.size) if file.size <= max_bytes else None, str(file.size)


def _pair_files(uri: str, listing: Listing, classes: LabelClasses | None) -> Archive:
    archive = Archive(uri)
    images, masks, rejects = _classify_files(listing)
    if not images:
        first = next((f"{row['name']}: {row['reason']}" for row in rejects), "none")
        raise SeganError(f"{uri}: no images found; {_EXPECTED}; found {first}")
    if classes:
        archive = class_masks.pair_class_masks(uri, images, listing.entries, classes)
        archive.rejects += rejects
        return archive
    used: dict[tuple[str, str], str] = {}
    for key, (image, role) in sorted(images.items()):
        if key not in masks:
            reason = f"no mask; expected {role.partner_name} among the split's masks"
            archive.rejects.append(make_reject(image.name, role.split, reason))
            continue
        mask, _ = masks.pop(key)
        first = used.setdefault(key[:2], image.name)
        if first == image.name:
            archive.pairs.append(Pair(role.id, role.split, image.uri, mask.uri))
            continue
        reason = f"same id as a file of another dataset in the split; {first} is used"
        archive.rejects += [make_reject(file.name, role.split, reason) for file in (image, mask)]
    for _, (mask, role) in sorted(masks.items()):
        reason = f"no image; expected {role.partner_name} among the split's images"
        archive.rejects.append(make_reject(mask.name, role.split, reason))
    archive.rejects += rejects
    return archive


def _classify_files(listing: Listing) -> tuple[_FilesByKey, _FilesByKey, list[dict[str, str]]]:
    """Images and masks by split, id and dataset, and the rejects."""
    images: _FilesByKey = {}
    masks: _FilesByKey = {}
    rejects = sorted(listing.rejects, key=lambda row: row["name"])
    for entry in sorted(listing.entries):
        role = layouts.classify_path(entry.path)
        if role is None:
            continue
        if entry.error:
            rejects.append(make_reject(entry.name, role.split, entry.error))
            continue
        first, _ = (masks if role.is_mask else images).setdefault(role.pair_key, (entry, role))
        if first is not entry:
            reason = f"same id as another file in the split; {first.name} is used"
            rejects.append(make_reject(entry.name, role.split, reason))
    return images, masks, rejects

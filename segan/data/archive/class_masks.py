"""Finds and decodes the masks of an archive: one per image, one per class, or label images."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from segan import storage
from segan.data.archive.images import decode_labels, decode_mask_frame
from segan.data.archive.label_classes import LabelClasses
from segan.data.archive.layouts import SPLIT_NAMES, FileRole
from segan.data.archive.pairs import Archive, Pair, make_reject
from segan.data.archive.sources import FileEntry
from segan.errors import RejectedError, SeganError

_SPLIT = re.compile(rf"_({'|'.join(SPLIT_NAMES)})(?:_|/)", re.IGNORECASE)

Key = tuple[str, str, str]  # split, id, dataset


def pair_class_masks(
    uri: str,
    images: Mapping[Key, tuple[FileEntry, FileRole]],
    entries: Iterable[FileEntry],
    classes: LabelClasses,
) -> Archive:
    """Pairs images with the masks that the patterns of `classes` name.

    Every image, and every other file that a pattern matches, is in a pair or among the rejects.

    Args:
        images: by split, id and dataset.
        entries: all files of the archive.

    Raises:
        SeganError: the classes have no patterns, or no file matches one.
    """
    if not classes.patterns:
        raise SeganError(
            f'{uri}: expected "mask:" with the pattern of the label images in the classes file'
        )
    archive, index = Archive(uri, classes=classes), _MaskIndex(classes, images.values(), entries)
    if not index.files:
        raise SeganError(f"{uri}: no masks found; expected files such as {classes.patterns[0]}")
    used: dict[tuple[str, str], str] = {}
    for key, (image, role) in sorted(images.items()):
        found = [index.find(pattern, role) for pattern in classes.patterns]
        first = used.setdefault(key[:2], image.name)
        try:
            if first != image.name:
                raise RejectedError(
                    f"same id as a file of another dataset in the split; {first} is used"
                )
            archive.pairs.append(_make_pair(image, role, classes, found))
        except RejectedError as error:
            archive.rejects.append(make_reject(image.name, role.split, str(error)))
    archive.rejects += index.unused_rejects()
    return archive


def _make_pair(
    image: FileEntry, role: FileRole, classes: LabelClasses, found: Sequence[FileEntry | None]
) -> Pair:
    missing = [
        f"{'' if classes.values else f' of {name}'}; expected {pattern.replace('{id}', role.id)}"
        for name, pattern, entry in zip(classes.names, classes.patterns, found, strict=False)
        if entry is None
    ]
    if missing and not classes.missing_is_empty:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise RejectedError(f"no mask{missing[0]}{more}")
    for entry in found:
        if entry and entry.error:
            raise RejectedError(f"{entry.name}: {entry.error}")
    uris = tuple(entry.uri if entry else "" for entry in found)
    if classes.values:
        return Pair(role.id, role.split, image.uri, uris[0])
    return Pair(role.id, role.split, image.uri, class_masks=uris)


class _MaskIndex:
    """The files that the patterns of classes match, by the ends of their paths."""

    def __init__(
        self,
        classes: LabelClasses,
        images: Iterable[tuple[FileEntry, FileRole]],
        entries: Iterable[FileEntry],
    ):
        self.patterns = [
            re.compile(re.escape(pattern).replace(r"\{id\}", "(?P<id>.+)"), re.IGNORECASE)
            for pattern in classes.patterns
        ]
        depths = [pattern.count("/") for pattern in classes.patterns]
        image_uris = {image.uri for image, _ in images}
        self.files: defaultdict[str, list[FileEntry]] = defaultdict(list)
        self._used: set[str] = set()
        for entry in sorted(entries):
            if entry.uri in image_uris:
                continue
            tails = [_tail(entry.path, depth) for depth in depths]
            pairs = zip(self.patterns, tails, strict=True)
            for tail in {tail.lower() for pattern, tail in pairs if pattern.fullmatch(tail)}:
                self.files[tail].append(entry)

    def find(self, pattern: str, role: FileRole) -> FileEntry | None:
        """The file of an image: of its split, where the folders' names have splits."""
        for entry in self.files.get(pattern.replace("{id}", role.id).lower(), ()):
            if _split_of(entry.path) in ("", role.split):
                self._used.add(entry.uri)
                return entry
        return None

    def unused_rejects(self) -> list[dict[str, str]]:
        """A row for each file that belongs to no image."""
        unused = {e.uri: e for files in self.files.values() for e in files}
        return [
            make_reject(entry.name, _split_of(entry.path), "a mask of no image, or a second one")
            for uri, entry in sorted(unused.items())
            if uri not in self._used
        ]


def _tail(path: str, depth: int) -> str:
    return "/".join(path.split("/")[-depth - 1 :])


def _split_of(path: str) -> str:
    """The split that a folder's name has, as those of ISIC; "" without one."""
    found = _SPLIT.findall(path.rpartition("/")[0] + "/")
    return SPLIT_NAMES[found[-1].lower()] if found else ""


def decode_masks(
    pair: Pair,
    contents: Sequence[bytes],
    original_size: tuple[int, int],
    size: tuple[int, int],
    classes: LabelClasses | None,
) -> np.ndarray:
    """Decodes the masks of a pair as uint8 [classes, H, W] of 0 and 1, by nearest neighbour.

    Args:
        contents: of `pair.mask_files`.
        original_size: (width, height) of the image.
        size: (width, height) of the masks that are returned.

    Raises:
        RejectedError: a mask is damaged, or has another size, mode or other values.
    """
    names = [storage.basename(uri) for uri in pair.mask_files]
    if classes and classes.values:
        return decode_labels(names[0], contents[0], original_size, size, classes.values)
    width, height = size
    return np.stack(
        [
            decode_mask_frame(name, content, original_size, size)
            if name
            else np.zeros((height, width), np.uint8)
            for name, content in zip(names, contents, strict=True)
        ]
    )

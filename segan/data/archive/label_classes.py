"""The classes of an archive with several label maps: their names, and where their masks are.

A YAML file says it. Either each class has mask files of its own, which may overlap,

    classes:
      globules: "{id}_attribute_globules.png"
      streaks: "{id}_attribute_streaks.png"
    missing: empty      # an image without the file lacks the class; default: it is rejected

or a label image per image has an integer per pixel, 0 for the background:

    mask: "{id}_labels.png"
    classes: {lesion: 1, hair: 2}

The order is that of the label maps. A pattern is a file's name, or the end of its path, with {id}
where the image's id is; upper and lower case are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segan import storage
from segan.config.load import parse_yaml
from segan.errors import NotFoundError, UsageError
from segan.utils.labels import MAX_CLASSES, check_class_names
from segan.utils.text import shorten

CLASSES_FILE = "classes.yaml"  # in an archive's folder, where it is found without an option
SHIPPED_FOLDER = Path(__file__).with_name("classes")
MAX_VALUE = 2**16 - 1  # of a label image of 16 bits
MAX_SHOWN = 100  # characters of a value in a message
_ID = "{id}"
_KEYS = ("classes", "mask", "missing")
_MAX_DEPTH = 10  # a description has two levels
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
_MISSING = ("reject", "empty")


@dataclass(frozen=True)
class LabelClasses:
    """The label maps of every image, in order.

    Attributes:
        names: of the classes.
        patterns: of each class's mask files, or of the label images; () for an archive that is
            listed in a table.
        values: of each class in the label images; () where each class has files of its own.
        missing_is_empty: whether an image without a class's file has an empty mask of it.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    missing_is_empty: bool = False

    def __len__(self) -> int:
        return len(self.names)


def shipped_classes() -> dict[str, Path]:
    """The descriptions that come with segan: their files by their names, sorted."""
    return {path.stem: path for path in sorted(SHIPPED_FOLDER.glob("*.yaml"))}


def read_classes(source: str) -> LabelClasses:
    """The classes that a file describes.

    Args:
        source: the name of a description that comes with segan, or a file's path or URI.

    Raises:
        UsageError: there is no such file, or it is not a description of classes.
        StorageError: it cannot be read.
    """
    shipped = shipped_classes().get(source)
    uri = str(shipped) if shipped else storage.normalise(source)
    try:
        content = storage.read_limited(uri)
    except NotFoundError:
        raise UsageError(
            f"classes {source}: not found; expected a YAML file or one of "
            f"{', '.join(shipped_classes())}"
        ) from None
    try:
        return parse_classes(content)
    except UsageError as error:
        raise UsageError(f"classes {source}: {error}") from None


def parse_classes(content: bytes) -> LabelClasses:
    """The classes that the content of a YAML file describes; raises UsageError if it is wrong."""
    try:
        text = content.decode("utf-8-sig")
        _check_tokens(text)
        tree = parse_yaml(text)
    except UsageError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"not YAML ({shorten(' '.join(str(error).split()), 200)})") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("classes"), dict):
        raise UsageError(
            'expected "classes:" with a name and a file pattern or a label value for each class'
        )
    if unknown := [key for key in tree if key not in _KEYS]:
        raise UsageError(f"unknown key {_show(unknown[0])}; expected {', '.join(_KEYS)}")
    if (missing := tree.get("missing", _MISSING[0])) not in _MISSING:
        raise UsageError(f"missing: expected {' or '.join(_MISSING)}, found {_show(missing)}")
    names, found = check_names(list(tree["classes"])), list(tree["classes"].values())
    if all(isinstance(value, str) for value in found):
        if "mask" in tree:
            raise UsageError(
                "mask: is the pattern of label images, but the classes have patterns of their own; "
                "give each class a label value, or remove mask"
            )
        patterns = tuple(map(_check_pattern, names, found))
        if len({pattern.lower() for pattern in patterns}) < len(patterns):
            raise UsageError("two classes have the same file pattern")
        return LabelClasses(names, patterns, (), missing == "empty")
    if "missing" in tree:
        raise UsageError("missing: belongs to classes with mask files, not to label images")
    mask = (_check_pattern("mask", tree["mask"]),) if "mask" in tree else ()
    return LabelClasses(names, mask, _check_values(names, found))


def _check_tokens(text: str) -> None:
    """Refuses YAML that costs more than its length: aliases expand, and nesting is quadratic."""
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise UsageError("expected YAML without aliases, which can expand without end")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _MAX_DEPTH:
            raise UsageError(f"expected YAML of at most {_MAX_DEPTH} levels, found more")


def check_names(names: Sequence[Any]) -> tuple[str, ...]:
    """The names of an archive's classes; raises UsageError if they cannot be used."""
    if not 1 <= len(names) <= MAX_CLASSES:
        raise UsageError(f"expected 1 to {MAX_CLASSES} classes, found {len(names)}")
    return check_class_names(tuple(names))


def _check_pattern(name: str, pattern: Any) -> str:
    if not isinstance(pattern, str) or pattern.count(_ID) != 1:
        raise UsageError(
            f'{name}: expected a file pattern with {_ID} once, such as "{_ID}_{name}.png", found '
            f"{_show(pattern)}"
        )
    steps = pattern.split("/")
    if re.search(r"[{}]", pattern.replace(_ID, "")) or not {"", ".", ".."}.isdisjoint(steps):
        raise UsageError(
            f"{name}: expected the end of a path, with no braces but {_ID}, found {_show(pattern)}"
        )
    if _ID not in steps[-1]:
        raise UsageError(f"{name}: expected {_ID} in the file's name, found {_show(pattern)}")
    return pattern


def _check_values(names: Sequence[str], values: Sequence[Any]) -> tuple[int, ...]:
    used: dict[int, str] = {}
    for name, value in zip(names, values, strict=True):
        if type(value) is not int:  # true is an int too
            raise UsageError(
                f"class {name}: expected a label value, or a file pattern for every class, found "
                f"{_show(value)}"
            )
        if not 1 <= value <= MAX_VALUE:
            reason = "0 is the background" if value == 0 else f"expected 1 to {MAX_VALUE}"
            raise UsageError(f"class {name}: label value {_show(value)}: {reason}")
        if value in used:
            raise UsageError(f"class {name}: has the label value {value} of {used[value]}")
        used[value] = name
    return tuple(values)


def _show(value: Any) -> str:
    return shorten(repr(value), MAX_SHOWN)

"""Names of the classes of label maps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from segan.errors import UsageError

MAX_CLASSES = 255
LESION = "lesion"  # the only class of records without named classes
MEAN = "mean"  # over the classes, among values by class
RESERVED_NAMES = ("background", MEAN, "model", "probability", "uncertainty")
MAX_NAME_LENGTH = 64
# sRGB of the outlines of classes, in order; none is a colour of skin, hair or lesions. More classes
# begin again at the first.
CLASS_COLOURS = (
    (0, 229, 255),
    (255, 214, 10),
    (140, 255, 102),
    (255, 122, 217),
    (64, 110, 255),
    (255, 255, 255),
    (178, 102, 255),
    (0, 200, 140),
)
# They are names of folders, of columns and of JSON keys.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def class_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    """The names of `count` classes: `names`, or if these are empty "lesion", or class_1 and so on.

    Raises:
        ValueError: there are names, and not one for each class.
    """
    if names:
        if len(names) != count:
            raise ValueError(f"expected a name for each of {count} classes, found {len(names)}")
        return tuple(names)
    return (LESION,) if count == 1 else tuple(f"class_{i}" for i in range(1, count + 1))


def find_class(names: Sequence[str], name: str) -> int:
    """The index of a class; raises UsageError if there is none of that name."""
    if name not in names:
        raise UsageError(f"class {name[:MAX_NAME_LENGTH]!r}: expected one of {', '.join(names)}")
    return list(names).index(name)


def class_colour(index: int) -> tuple[int, int, int]:
    """The colour of a class's outlines, sRGB."""
    return CLASS_COLOURS[index % len(CLASS_COLOURS)]


def css_colour(index: int) -> str:
    """The colour of a class's outlines as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(index))


def check_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names; raises UsageError if they cannot be those of classes, or one stands twice."""
    seen: set[str] = set()
    for name in names:
        if check_class_name(name).lower() in seen:
            raise UsageError(f"class {name}: the name stands twice (case does not distinguish)")
        seen.add(name.lower())
    return names


def check_class_name(name: Any) -> str:
    """The name; raises UsageError if it cannot be that of a class."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        raise UsageError(
            f"class {str(name)[:MAX_NAME_LENGTH]!r}: expected a name of at most {MAX_NAME_LENGTH} "
            "letters, digits, _ and -"
        )
    if name.lower() in RESERVED_NAMES:
        raise UsageError(f"class {name}: the name is reserved; choose another")
    return name


# Of stored files; empty where the classes have no names of their own.
ClassNames = Annotated[tuple[str, ...], AfterValidator(check_class_names)]

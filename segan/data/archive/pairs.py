"""Image-mask pairs, and the archive that a listing returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from segan.data.archive.label_classes import LabelClasses
from segan.errors import SeganError


@dataclass(frozen=True)
class Pair:
    """URIs of an image and its mask; `mask` is None where there is no ground truth.

    Where each class has a file of its own, `class_masks` has their URIs in the order of the
    classes, "" for one that is missing and counts as empty, and `mask` is None.

    Pairs of one `group` (a patient, a set of duplicates) are never split between folds; a pair with
    an empty `group` is a group of its own.
    """

    id: str
    split: str
    image: str
    mask: str | None = None
    group: str = ""
    class_masks: tuple[str, ...] = ()

    @property
    def mask_files(self) -> tuple[str, ...]:
        """The URIs of all its masks; "" for one that is missing and counts as empty."""
        return self.class_masks or ((self.mask,) if self.mask else ())


@dataclass
class Archive:
    """The usable pairs of a listing, sorted by split and id, and the rejected files.

    A row of `rejects` has `name`, `split` (empty if unknown) and `reason`. `classes` is None where
    an image has one mask, that of the lesion.
    """

    uri: str
    pairs: list[Pair] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)
    classes: LabelClasses | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty where an image has one mask, that of the lesion."""
        return self.classes.names if self.classes else ()

    @property
    def num_inputs(self) -> int:
        """Number of pairs and rejects."""
        return len(self.pairs) + len(self.rejects)

    def split(self, name: str) -> list[Pair]:
        """The pairs of a split; raises SeganError if it is empty."""
        pairs = [pair for pair in self.pairs if pair.split == name]
        if not pairs:
            known = ", ".join(sorted({pair.split for pair in self.pairs})) or "none"
            raise SeganError(f"{self.uri}: no pairs in split {name!r}; splits with pairs: {known}")
        return pairs

    def rejects_of(self, split: str) -> list[dict[str, str]]:
        """The rejects of a split, and those that may be of it because theirs is unknown."""
        return [row for row in self.rejects if row["split"] in (split, "")]


def make_reject(name: str, split: str, reason: str) -> dict[str, str]:
    """A row of the table of rejects."""
    # File names need not be valid Unicode; the table's are.
    name = name.encode("utf-8", "backslashreplace").decode()
    return {"name": name, "split": split, "reason": reason}


def check_rejects(
    rejects: Sequence[dict[str, str]], total: int, max_fraction: float, uri: str
) -> None:
    """Raises SeganError if more than the fraction `max_fraction` of `total` pairs was rejected."""
    if total and len(rejects) / total > max_fraction:
        shown = "".join(f"\n  {row['name']}: {row['reason']}" for row in rejects[:5])
        raise SeganError(
            f"{uri}: {len(rejects)} of {total} pairs rejected, more than the fraction "
            f"{max_fraction:g} allowed by --max-rejects; the first:{shown}"
        )

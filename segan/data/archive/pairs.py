"""Pairs of image and mask, and the archive that a listing makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from segan.errors import SeganError


@dataclass(frozen=True)
class Pair:
    """An image and its mask, by URI; `mask` is None in an archive without truth.

    Pairs of one `group` (a patient, a set of duplicates) belong on one side of every division; an
    empty one stands alone.
    """

    id: str
    split: str
    image: str
    mask: str | None = None
    group: str = ""


@dataclass
class Archive:
    """What a listing found: usable pairs by id, and what is no pair, with reasons.

    A row of `rejects` has `name`, `split` (empty where none can be known) and `reason`.
    """

    uri: str
    pairs: list[Pair] = field(default_factory=list)
    rejects: list[dict[str, str]] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        """How much was found: every pair and every reject."""
        return len(self.pairs) + len(self.rejects)

    def split(self, name: str) -> list[Pair]:
        """The pairs of a split; raises SeganError where it has none."""
        found = [pair for pair in self.pairs if pair.split == name]
        if not found:
            known = ", ".join(sorted({pair.split for pair in self.pairs})) or "no pairs at all"
            raise SeganError(f"{self.uri}: no pairs in split {name!r}; it has {known}")
        return found


def make_reject(name: str, split: str, reason: str) -> dict[str, str]:
    """A row for the table of rejects."""
    # A name need not be text where it comes from; in the table it is.
    name = name.encode("utf-8", "backslashreplace").decode()
    return {"name": name, "split": split, "reason": reason}


def check_rejects(
    rejects: Sequence[dict[str, str]], total: int, max_fraction: float, uri: str
) -> None:
    """Raises SeganError when more than the share `most` of `total` pairs was rejected."""
    if total and len(rejects) / total > max_fraction:
        shown = "".join(f"\n  {row['name']}: {row['reason']}" for row in rejects[:5])
        raise SeganError(
            f"{uri}: {len(rejects)} of {total} pairs rejected, more than the share of "
            f"{max_fraction:g} "
            f"that --max-rejects allows; the first:{shown}"
        )

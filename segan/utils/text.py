"""Numbers in sentences, tables, and text of unknown origin."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Control characters (but for tab and newline), surrogates of names that are not UTF-8, and
# characters that move or reorder what follows them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")  # how a cell that a program computes begins


def count_noun(count: float, noun: str) -> str:
    """The number with its noun, in the plural unless it is 1: "1 CPU", "0.5 CPUs", "3 GPUs"."""
    return f"{count:g} {noun}{'' if count == 1 else 's'}"


def shorten(text: str, length: int) -> str:
    """The text, cut to `length` characters with an ellipsis at its end."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def escape_controls(text: str) -> str:
    """The text with `\\x1b` for ESC and so on, since a terminal would obey names of files."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def to_cell(text: str) -> str:
    """The text as a cell of a CSV file that a spreadsheet does not compute: with ' before it."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def from_cell(cell: str) -> str:
    """The text of a cell that `to_cell` made."""
    return cell.removeprefix("'")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without a newline at its end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

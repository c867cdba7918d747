"""The shell commands that README.md and the pages of docs/ show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "baselines/README.md",
    "experiments/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SEPARATORS = {"&&", "||", ";", "|", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block of shell commands; `line` is that of its first command."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def lines(self) -> list[str]:
        """Its lines, with those that a backslash, a pipe or an open quote continues joined."""
        joined: list[str] = []
        pending = ""
        for line in self.text.splitlines():
            pending += line
            if pending.endswith("\\"):
                pending = pending[:-1]
                continue
            try:
                words = split_words(pending)
            except ValueError:  # an open quote
                pending += "\n"
                continue
            if words[-1:] == ["|"]:
                pending += "\n"  # ends a comment after the pipe
                continue
            if words:
                joined.append(pending)
            pending = ""
        assert not pending, f"{self}: {pending!r} does not end"
        return joined

    def commands(self) -> Iterator[list[str]]:
        """The words of each simple command."""
        for line in self.lines():
            command: list[str] = []
            for word in [*split_words(line), ";"]:
                if word not in _SEPARATORS:
                    command.append(word)
                elif command:
                    yield command
                    command = []


def split_words(line: str) -> list[str]:
    """The words of a line as a shell sees them, without comments; separators are words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
    lexer.whitespace_split = True
    return list(lexer)


def read_blocks() -> list[Block]:
    """The blocks of all pages whose language is sh."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text()
        for match in _FENCE.finditer(text):
            if match["language"] == "sh":
                line = text.count("\n", 0, match.start("text")) + 1
                found.append(Block(page, line, match["text"]))
    return found


def read_inline_commands() -> list[tuple[str, str]]:
    """The page and text of each `segan ...` in running text."""
    found = []
    for page in PAGES:
        text = _FENCE.sub("", (ROOT / page).read_text())
        found += [(page, " ".join(code.split())) for code in re.findall(r"`(segan [^`]+)`", text)]
    return found

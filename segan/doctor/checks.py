"""What a check finds, and how checks are made: each for itself, and none for longer than it may."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from segan.errors import SeganError

SECONDS = 10.0
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILS = "fails"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """A verdict, what was found, and what to do about it."""

    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A look at one thing; `seconds` is what it may take."""

    name: str
    look: Callable[[], Outcome]
    seconds: float = SECONDS


@dataclass(frozen=True)
class Finding:
    """A line of the doctor's answer."""

    check: str
    outcome: Outcome

    def row(self) -> dict[str, Any]:
        return {"check": self.check, **asdict(self.outcome)}


def ok(found: str) -> Outcome:
    return Outcome(Verdict.OK, found)


def warning(found: str, advice: str) -> Outcome:
    return Outcome(Verdict.WARNING, found, advice)


def fails(found: str, advice: str = "") -> Outcome:
    return Outcome(Verdict.FAILS, found, advice)


def skipped(found: str, advice: str = "") -> Outcome:
    return Outcome(Verdict.SKIPPED, found, advice)


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """Makes the checks in turn; one that raises or does not return is a finding that it fails."""
    for check in checks:
        outcome = _look(check)
        found, advice = map(_without_keys, (outcome.found, outcome.advice))
        yield Finding(check.name, Outcome(outcome.verdict, found, advice))


def _look(check: Check) -> Outcome:
    made: list[Outcome] = []

    def look() -> None:
        try:
            made.append(check.look())
        except SeganError as error:  # it says what to do
            made.append(fails(str(error)))
        except Exception as error:
            made.append(fails(f"{type(error).__name__}: {error}"))

    # A thread that does not come back is left behind: the command ends without it.
    looking = threading.Thread(target=look, name=check.name, daemon=True)
    looking.start()
    looking.join(check.seconds)
    return made[0] if made else fails(f"not done after {check.seconds:g} s", "try again later")


def _without_keys(text: str) -> str:
    """Errors of libraries may quote what they were given."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return " ".join(text.split())

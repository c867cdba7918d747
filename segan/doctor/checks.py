"""What a check finds, and how checks are made: each for itself, and none for longer than it may."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from segan.errors import SeganError

DEFAULT_TIMEOUT_S = 10.0
SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RAY_AUTH_TOKEN",
)


class CheckStatus(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """A verdict, what was found, and what to do about it."""

    status: CheckStatus
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A look at one thing; `seconds` is what it may take."""

    name: str
    run: Callable[[], Outcome]
    timeout_s: float = DEFAULT_TIMEOUT_S


@dataclass(frozen=True)
class CheckResult:
    """A line of the doctor's answer."""

    check: str
    outcome: Outcome

    def to_dict(self) -> dict[str, Any]:
        return {"check": self.check, **asdict(self.outcome)}


def ok(message: str) -> Outcome:
    return Outcome(CheckStatus.OK, message)


def warning(message: str, advice: str) -> Outcome:
    return Outcome(CheckStatus.WARNING, message, advice)


def failed(message: str, advice: str = "") -> Outcome:
    return Outcome(CheckStatus.FAILED, message, advice)


def skipped(message: str, advice: str = "") -> Outcome:
    return Outcome(CheckStatus.SKIPPED, message, advice)


def run_checks(checks: Iterable[Check]) -> Iterator[CheckResult]:
    """Makes the checks in turn; one that raises or does not return is a finding that it fails."""
    for check in checks:
        outcome = _run_check(check)
        found, advice = map(_redact_secrets, (outcome.message, outcome.advice))
        yield CheckResult(check.name, Outcome(outcome.status, found, advice))


def _run_check(check: Check) -> Outcome:
    made: list[Outcome] = []

    def look() -> None:
        try:
            made.append(check.run())
        except SeganError as error:  # it says what to do
            made.append(failed(str(error)))
        except Exception as error:
            made.append(failed(f"{type(error).__name__}: {error}"))

    # A thread that does not come back is left behind: the command ends without it.
    looking = threading.Thread(target=look, name=check.name, daemon=True)
    looking.start()
    looking.join(check.timeout_s)
    return made[0] if made else failed(f"not done after {check.timeout_s:g} s", "try again later")


def _redact_secrets(text: str) -> str:
    """Errors of libraries may quote what they were given."""
    for name in SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return " ".join(text.split())

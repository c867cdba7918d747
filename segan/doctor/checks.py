"""Runs checks one by one, each with a timeout, and collects their outcomes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

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
    """A check's status, what was found, and what to do about it."""

    status: CheckStatus
    message: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """A named check; skipped if the check named `requires` fails or is skipped."""

    name: str
    run: Callable[[], Outcome]
    timeout_s: float = DEFAULT_TIMEOUT_S
    requires: str = ""


def ok(message: str) -> Outcome:
    return Outcome(CheckStatus.OK, message)


def warning(message: str, advice: str) -> Outcome:
    return Outcome(CheckStatus.WARNING, message, advice)


def failed(message: str, advice: str = "") -> Outcome:
    return Outcome(CheckStatus.FAILED, message, advice)


def skipped(message: str, advice: str = "") -> Outcome:
    return Outcome(CheckStatus.SKIPPED, message, advice)


def run_checks(checks: Iterable[Check]) -> Iterator[tuple[str, Outcome]]:
    """Yields each check's name and outcome; a check that raises or times out has failed."""
    passed: dict[str, bool] = {}
    for check in checks:
        if passed.get(check.requires, True):
            outcome = _run_check(check)
        else:
            outcome = skipped(f"not run, because {check.requires!r} did not pass")
        passed[check.name] = outcome.status in (CheckStatus.OK, CheckStatus.WARNING)
        message, advice = map(_redact_secrets, (outcome.message, outcome.advice))
        yield check.name, Outcome(outcome.status, message, advice)


def _run_check(check: Check) -> Outcome:
    outcomes: list[Outcome] = []

    def run() -> None:
        try:
            outcomes.append(check.run())
        except SeganError as error:  # its message contains the advice
            outcomes.append(failed(str(error)))
        except Exception as error:
            outcomes.append(failed(f"{type(error).__name__}: {error}"))

    # A daemon thread: one that hangs does not keep the command from ending.
    thread = threading.Thread(target=run, name=check.name, daemon=True)
    thread.start()
    thread.join(check.timeout_s)
    timeout = failed(f"not finished after {check.timeout_s:g} s", "try again later")
    return outcomes[0] if outcomes else timeout


def _redact_secrets(text: str) -> str:
    """Returns one line of text without secrets, which errors of libraries may contain."""
    for name in SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, f"<{name}>")
    return " ".join(text.split())

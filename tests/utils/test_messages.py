"""Capturing a process's messages, and keeping secrets out of them."""

from __future__ import annotations

import logging
import warnings

import pytest

from segan.utils.messages import TRANSCRIPT, capture_messages, redact_secrets


def test_messages_of_the_project_and_warnings_are_captured() -> None:
    found: list[tuple[int, str]] = []
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with capture_messages(lambda *message: found.append(message), logging.WARNING):
            logging.getLogger("segan.storage").warning("slow %s", "store")
            logging.getLogger("ray_jobs.training").info("below the level")
            logging.getLogger("another").warning("of another library")
            logging.getLogger(TRANSCRIPT).warning("shown")
            warnings.warn("odd shape", UserWarning, stacklevel=1)
        logging.getLogger("segan.storage").warning("after the block")
        warnings.warn("after the block", UserWarning, stacklevel=1)
    level = logging.WARNING
    assert found == [(level, "slow store"), (level, "shown"), (level, "UserWarning: odd shape")]
    assert [str(warning.message) for warning in shown] == ["odd shape", "after the block"]


def test_values_of_secret_variables_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "12")
    assert (
        redact_secrets("at http://me:correct-horse@host/12")
        == "at http://me:<MLFLOW_TRACKING_PASSWORD>@host/12"
    )

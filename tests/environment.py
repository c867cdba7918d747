"""Temporary changes of this process's environment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest


@contextmanager
def temporary_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets these variables while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield

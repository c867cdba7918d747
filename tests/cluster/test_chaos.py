"""A training with kills, freezes and storage outages ends with the weights of an undisturbed one.

Injects a few of the faults of `tests.chaos`, which can be run by hand with any number of them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.check_manifests import ROOT
from infra.local.namespaces import Namespace

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


def test_the_weights_are_those_of_the_undisturbed_run(
    make_hosts: Callable[..., list[Namespace]], tmp_path: Path
) -> None:
    make_hosts("probe")
    command = [sys.executable, "-m", "tests.chaos", "--faults", "3", "--epochs", "45"]
    command += ["--seed", "11"]  # with a second driver and other records in the middle
    done = subprocess.run(
        [*command, "--folder", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the same to the last bit"

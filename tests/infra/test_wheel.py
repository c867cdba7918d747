"""The wheel has what the commands need: they run from it alone, outside the checkout."""

import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wheel import ROOT, build_wheel, use_every_stage

PACKAGES = ("segan", "ray_jobs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pip = [sys.executable, "-m", "pip"]
    return build_wheel(tmp_path_factory.mktemp("wheel"), pip, "--no-build-isolation")


def test_it_has_every_file_of_the_packages(wheel: Path) -> None:
    """Data files need a pattern in pyproject.toml; without it only a checkout has them."""
    found = {n for n in zipfile.ZipFile(wheel).namelist() if n.split("/")[0] in PACKAGES}
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    # The runtime environment of `ray job submit --working-dir .`, which needs the checkout.
    assert expected - found == {"ray_jobs/runtime_env.yaml"}
    assert found <= expected


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        yield Path(name)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_every_stage_works_from_it(wheel: Path, folder: Path) -> None:
    """With the packages of this environment; `python tests/wheel.py` installs it into a new one."""
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    environment = {**os.environ, "PYTHONPATH": str(folder / "installed")}
    use_every_stage([sys.executable, "-P", "-m", "segan"], folder / "work", environment)

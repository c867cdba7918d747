"""The package versions and the commit that a run is computed with."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("segan", "torch", "ray", "pyarrow", "numpy", "pillow")


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that influence results."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """SEGAN_GIT_COMMIT, else the commit of the checkout, else None."""
    if commit := os.environ.get("SEGAN_GIT_COMMIT"):
        return commit
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

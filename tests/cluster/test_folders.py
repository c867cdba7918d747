"""Folders for the Ray that a command starts."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_jobs.cluster.folders import MAX_FOLDER_LENGTH, ray_folder, temporary_ray_folder
from segan.errors import SeganError


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """No cluster is needed."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder as RAY_TMPDIR; pytest's own are too long for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_it_is_inside_a_folder_of_this_user_alone(short: Path) -> None:
    folder = Path(ray_folder())
    assert folder == short / f"segan-{os.getuid()}" / "ray"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert ray_folder() == str(folder), "the same again"


def test_a_folder_that_others_can_enter_is_refused(short: Path) -> None:
    (short / f"segan-{os.getuid()}").mkdir()
    (short / f"segan-{os.getuid()}").chmod(0o777)
    with pytest.raises(SeganError, match="a folder that only this user can enter"):
        ray_folder()


def test_a_link_is_refused(short: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (short / f"segan-{os.getuid()}").symlink_to(tmp_path)
    with pytest.raises(SeganError, match="a folder that only this user can enter"):
        ray_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root")
def test_a_folder_of_another_user_is_refused(short: Path) -> None:
    private = short / f"segan-{os.getuid()}"
    private.mkdir(mode=0o700)
    os.chown(private, 65534, 65534)
    with pytest.raises(SeganError, match="a folder that only this user can enter"):
        ray_folder()


def test_a_ray_tmpdir_that_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 90)
    with pytest.raises(SeganError, match=r"^RAY_TMPDIR=/tmp/x+: expected at most \d+ characters"):
        ray_folder()


def test_where_tmpdir_is_too_long_it_is_below_tmp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As in jobs of SLURM."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 60)))
    assert ray_folder() == f"/tmp/segan-{os.getuid()}/ray"
    with temporary_ray_folder() as folder:
        assert len(folder) <= MAX_FOLDER_LENGTH
        assert stat.S_IMODE(Path(folder).parent.stat().st_mode) == 0o700
    assert not Path(folder).parent.exists()

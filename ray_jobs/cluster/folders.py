"""Folders for the Ray that a command starts, which other users of the machine cannot enter.

Ray opens its folder to all users, so it is always a folder inside one of our own. Its sockets have
about 65 characters below it, and the path of a socket at most 107.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from segan.errors import SeganError

MAX_FOLDER_LENGTH = 40


def ray_folder() -> str:
    """The folder of this user's Ray, with the logs of its sessions.

    It is below RAY_TMPDIR, else below TMPDIR if that is short enough, else below /tmp.

    Raises:
        SeganError: RAY_TMPDIR is too long, or the folder is another user's or cannot be made.
    """
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    name = f"segan-{os.getuid()}"
    if not os.environ.get("RAY_TMPDIR") and len(f"{base}/{name}/ray") > MAX_FOLDER_LENGTH:
        base = "/tmp"  # noqa: S108  whose owner and permissions are checked below
    private = Path(base).absolute() / name
    folder = private / "ray"
    if len(str(folder)) > MAX_FOLDER_LENGTH:
        raise SeganError(
            f"RAY_TMPDIR={base}: expected at most "
            f"{MAX_FOLDER_LENGTH - len(str(folder)) + len(base)} characters, because Ray's sockets "
            f"lie below it, found {len(base)}; set it to a shorter path"
        )
    try:
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = private.lstat()
    except OSError as error:
        raise SeganError(
            f"{private}: {error.strerror}; set RAY_TMPDIR to a folder with some free space"
        ) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SeganError(
            f"{private}: expected a folder that only this user can enter; remove it, or set "
            "RAY_TMPDIR to another folder"
        )
    return str(folder)


@contextlib.contextmanager
def temporary_ray_folder() -> Iterator[str]:
    """A folder for a Ray that ends with the block; in /tmp where TMPDIR is too long."""
    base = tempfile.gettempdir()
    if len(base) + len("/segan-12345678/ray") > MAX_FOLDER_LENGTH:
        base = "/tmp"  # noqa: S108  the folder is made new, with a random name
    with tempfile.TemporaryDirectory(
        prefix="segan-", dir=base, ignore_cleanup_errors=True
    ) as private:  # with the permissions 0700
        yield f"{private}/ray"

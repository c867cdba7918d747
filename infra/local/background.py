"""A cluster on this machine in the background: an S3 server, a Ray head, its dashboard.

    python -m infra.local.background start|stop [--folder DIR]

One process holds both and ends them when it ends. It keeps its pid in a file that it has locked:
where the lock is held, the pid in the file is still that process's.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from infra.local.cluster import ray_cluster
from infra.local.processes import StartError
from infra.local.s3 import s3_server
from segan.cli.console import echo

BUCKET = "segan"
START_TIMEOUT_S, STOP_TIMEOUT_S = 300, 60


def main() -> int:
    """Exit code 0 where it is then as asked for, also if it was so before."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.background", description=__doc__)
    parser.add_argument("action", choices=("start", "stop", "run"))
    parser.add_argument("--folder", type=Path, default=Path("cluster"), help="for all it keeps")
    arguments = parser.parse_args()
    try:
        {"start": start, "stop": stop, "run": run_foreground}[arguments.action](arguments.folder)
    except StartError as error:
        echo(f"cluster: {error}")
        return error.exit_code
    return 0


def start(folder: Path) -> None:
    """Starts what is not running, and says how to point a shell at it."""
    folder.mkdir(exist_ok=True, mode=0o700)
    running, ready, log = running_pid(folder), folder / "environment", folder / "log"
    if not running:
        ready.unlink(missing_ok=True)  # of one that was killed
        with log.open("w") as output:
            command = [
                sys.executable,
                "-m",
                "infra.local.background",
                "run",
                "--folder",
                str(folder),
            ]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def has_exited() -> bool:
        return not running_pid(folder) if running else process.poll() is not None

    if (
        not _wait_until(START_TIMEOUT_S, lambda: ready.exists() or has_exited())
        or not ready.exists()
    ):
        raise StartError(f"it did not start; {log} ends:\n{log.read_text()[-2000:]}")
    echo("already running" if running else "started")
    echo((folder / "about").read_text().rstrip())


def stop(folder: Path) -> None:
    """Ends what is running; what was stored stays in the folder."""
    pid = running_pid(folder)
    if not pid:
        echo("not running")
        return
    os.kill(pid, signal.SIGTERM)
    if not _wait_until(STOP_TIMEOUT_S, lambda: not running_pid(folder)):
        raise StartError(f"process {pid} has not ended {STOP_TIMEOUT_S} s after SIGTERM")
    echo(f"stopped; what was stored is in {folder}/s3 and is there again at the next start")


def running_pid(folder: Path) -> int | None:
    """The pid of the process that holds the cluster of this folder, if there is one."""
    if not (folder / "pid").exists():
        return None
    with (folder / "pid").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            text = file.read()
    if text:
        return int(text)
    time.sleep(0.05)  # it has just locked it
    return running_pid(folder)


def run_foreground(folder: Path) -> None:
    """Runs both until a signal comes or one of them ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit_on_signal)
    with ExitStack() as stack:
        _lock_pid_file(folder, stack)
        server = stack.enter_context(s3_server(folder / "s3"))
        server.create_bucket(BUCKET)
        cpus = max(4, os.cpu_count() or 1)
        cluster = stack.enter_context(ray_cluster(folder / "ray", cpus, server.environment))
        about = [
            f"S3 server  {server.endpoint}, bucket s3://{BUCKET}",
            f"dashboard  {cluster.dashboard}, token in {cluster.token_path}",
            f"a shell    source {folder}/environment",
            "the end    make cluster-stop",
        ]
        (folder / "about").write_text("\n".join(about) + "\n")
        stack.callback((folder / "environment").unlink)
        _write_environment(folder / "environment", server.environment | cluster.environment)
        while all(Path(f"/proc/{pid}").exists() for pid in (server.pid, cluster.pid)):
            time.sleep(0.5)
        raise StartError(f"one of the two has ended: see the logs in {folder}/s3 and {folder}/ray")


def _lock_pid_file(folder: Path, stack: ExitStack) -> None:
    """Locks the folder's pid file, with this process's pid in it, until the rest has ended."""
    file = stack.enter_context((folder / "pid").open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(f"another start has taken {folder}; try again") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def _write_environment(path: Path, values: Mapping[str, str]) -> None:
    """Written aside first: whoever sees the file sees all of it."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in values.items()))
    part.rename(path)


def _exit_on_signal(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # one is enough, and the end takes a moment
    sys.exit(0)


def _wait_until(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


if __name__ == "__main__":
    sys.exit(main())

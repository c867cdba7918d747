"""A cluster on this machine in the background: an S3 server and a Ray head with its dashboard.

    python -m infra.local.background start|stop [--folder DIR]

One background process runs both. It writes its pid to a file and holds a lock on the file, so a pid
in a file that is not locked is stale.
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
    """Returns the exit code: 0 if the cluster is in the requested state, even if it was before."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.background", description=__doc__)
    parser.add_argument("action", choices=("start", "stop", "run"), help="run: in the foreground")
    parser.add_argument(
        "--folder", type=Path, default=Path("cluster"), help="for all files; default: cluster"
    )
    arguments = parser.parse_args()
    try:
        {"start": start, "stop": stop, "run": run_foreground}[arguments.action](arguments.folder)
    except StartError as error:
        echo(f"cluster: {error}")
        return error.exit_code
    return 0


def start(folder: Path) -> None:
    """Starts the cluster if it is not running, and prints how to use it from a shell."""
    folder.mkdir(exist_ok=True, mode=0o700)
    running, environment, log = running_pid(folder), folder / "environment", folder / "log"
    if not running:
        environment.unlink(missing_ok=True)  # of a process that was killed
        command = [sys.executable, "-m", "infra.local.background", "run", "--folder", str(folder)]
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def has_exited() -> bool:
        return not running_pid(folder) if running else process.poll() is not None

    _wait_until(START_TIMEOUT_S, lambda: environment.exists() or has_exited())
    if not environment.exists():
        raise StartError(f"the cluster did not start; the end of {log}:\n{log.read_text()[-2000:]}")
    echo("already running" if running else "started")
    echo((folder / "about").read_text().rstrip())


def stop(folder: Path) -> None:
    """Stops the cluster; stored objects stay in the folder."""
    pid = running_pid(folder)
    if not pid:
        echo("not running")
        return
    os.kill(pid, signal.SIGTERM)
    if not _wait_until(STOP_TIMEOUT_S, lambda: not running_pid(folder)):
        raise StartError(f"process {pid} still runs {STOP_TIMEOUT_S} s after SIGTERM")
    echo(f"stopped; stored objects stay in {folder}/s3 for the next start")


def running_pid(folder: Path) -> int | None:
    """The pid of the process that runs the cluster of this folder, or None."""
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
    time.sleep(0.05)  # it holds the lock and has not written its pid yet
    return running_pid(folder)


def run_foreground(folder: Path) -> None:
    """Runs the S3 server and the Ray head until SIGTERM or SIGINT, or until one of them ends."""
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
            f"in a shell source {folder}/environment",
            "to stop    make cluster-stop",
        ]
        (folder / "about").write_text("\n".join(about) + "\n")
        stack.callback((folder / "environment").unlink)
        write_environment(folder / "environment", server.environment | cluster.environment)
        while all(Path(f"/proc/{pid}").exists() for pid in (server.pid, cluster.pid)):
            time.sleep(0.5)
        raise StartError(f"a server has ended: see the logs in {folder}/s3 and {folder}/ray")


def _lock_pid_file(folder: Path, stack: ExitStack) -> None:
    """Writes this process's pid to the folder's pid file and locks it until the stack closes."""
    file = stack.enter_context((folder / "pid").open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StartError(f"another process is starting a cluster in {folder}; try again") from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()


def write_environment(path: Path, values: Mapping[str, str]) -> None:
    """Writes `export` lines; the file appears complete, and is readable by the user only."""
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in values.items()))
    part.rename(path)


def _exit_on_signal(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the shutdown
    sys.exit(0)


def _wait_until(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


if __name__ == "__main__":
    sys.exit(main())

"""The Ray that a command starts if it finds no cluster, in a user's environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from segan.cli.main import main

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

INTRUDER = """
import os, sys
os.setgid(65534); os.setuid(65534)
folder = sys.argv[1]
for attempt in (os.listdir, lambda f: os.chdir(f), lambda f: open(f + "/planted", "w")):
    try:
        attempt(folder)
    except PermissionError:
        continue
    sys.exit(f"another user reaches {folder}")
"""

PROGRAM = """
import psutil
import ray_jobs  # before Ray, as in every command: Ray reads its settings when it is imported
import ray
from segan.cli.commands.options import join_cluster

join_cluster(False)
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
addresses = {
    connection.laddr.ip.removeprefix("::ffff:")
    for process in processes
    for connection in process.net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
}
print(sorted(addresses), len(processes) > 3)
print("folder", ray._private.worker._global_node.get_session_dir_path())
ray.shutdown()
"""


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """This process connects to no cluster."""


def test_it_listens_on_loopback_alone_with_a_token_for_its_user(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert "['127.0.0.1'] True" in done.stderr.splitlines(), done.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    check_that_others_are_kept_out(done.stderr)


def check_that_others_are_kept_out(output: str) -> None:
    """Tries to enter the folder of a session as another user; needs to be root."""
    (folder,) = re.findall(r"^folder (.+)$", output, re.MULTILINE)
    assert Path(folder).parents[1].stat().st_mode & 0o077 == 0
    if os.geteuid() == 0:
        command = [sys.executable, "-I", "-c", INTRUDER]
        for place in (folder, str(Path(folder).parent)):
            done = subprocess.run([*command, place], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def test_without_a_home_it_starts_and_keeps_others_out(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path / "missing"), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert "['127.0.0.1'] True" in done.stderr.splitlines(), done.stderr
    check_that_others_are_kept_out(done.stderr)
    assert not (tmp_path / "missing").exists()


TRAINING = """
import sys, threading, time
import psutil
from segan.cli.main import main

found = set()

def watch():
    while True:
        for process in psutil.Process().children(recursive=True):
            try:
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        kind = "worker" if "RayTrainWorker" in process.name() else "other"
                        found.add((connection.laddr.ip.removeprefix("::ffff:"), kind))
                if "RayTrainWorker" in process.name():
                    found.add(("seen", "worker"))
            except psutil.Error:
                continue
        time.sleep(0.5)  # each look reads all of /proc, and this thread shares the driver's time

threading.Thread(target=watch, daemon=True).start()
code = main(sys.argv[1:])
print("LISTENING", sorted({address for address, _ in found}), code, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_training_opens_no_port_to_others(tmp_path: Path) -> None:
    """Two workers, whose rendezvous and collectives are torch's own."""
    archive, records = tmp_path / "archive", tmp_path / "records"
    counts = ["--train", "8", "--validation", "2", "--test", "1", "--short-side", "64"]
    assert main(["synth", str(archive), *counts]) == 0
    assert main(["ingest", str(archive), str(records), "--local"]) == 0
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    overrides = [
        f"data.records={records}", "network.width=2", "augment.crop=64", "training.batch_size=2",
        "training.epochs=2", "cluster.workers=2", "cluster.cpus_per_worker=0.5",
        "cluster.threads_per_worker=1", "evaluation.report=false",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, "train", str(tmp_path / "run"), *overrides],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "LISTENING ['127.0.0.1', 'seen'] 0" in done.stderr, done.stderr

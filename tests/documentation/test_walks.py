"""The commands that README.md and docs/ show, run as they are typed.

In a copy of the checkout, by bash, in a user's environment, with a cluster that `make cluster` has
started. Those for `s3://bucket` run after the walk of docs/cluster.md, whose study, ensemble and
archive lie there then.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documentation.blocks import ROOT, Block, read_blocks

BLOCKS = read_blocks()
START = "make cluster"
PAGES = (
    "README.md",
    "docs/checkpoints.md",
    "docs/getting-started.md",
    "docs/models.md",
    "docs/reports.md",
    "docs/watching.md",
)
# Lines that are not run, and why.
NOT_RUN = {
    r"^make (demo|test)|^git clone": "has tests of its own",
    r"^(python3 -m venv|.*\bpip3? install|sudo|aws|kubectl) ": "installs or needs another program",
    r"\bcurl |^(prometheus|grafana) |^export RAY_|cat demo/ray": "needs the page or another server",
    r"segan download ": "needs the internet",
    r"--config paper|training\.init": "takes hours on CPUs",
    r"segan serve|--live|--follow|tensorboard|infra\.local\.s3": "runs until it is stopped",
    r"-m pdb|POST_MORTEM|step_timeout_s=0": "waits for the keyboard",
    r"segan runs track|MLFLOW": "needs a tracking server",
    r"^cd first|python3 -c|^for name|sha256sum": "is one command of several lines, for aws",
    r"demo/ray|\.local": "needs what the demo leaves",
}
PREPARE = """
import boto3
s3 = boto3.resource("s3")
s3.create_bucket(Bucket="bucket")
for item in s3.Bucket("segan").objects.all():
    # README.md builds the ensemble. Ray leaves markers of folders, which cannot be copied.
    if item.key.startswith("ensembles/") or item.key.endswith("/"):
        continue
    s3.Bucket("bucket").copy({"Bucket": "segan", "Key": item.key}, item.key)
    name = item.key.rsplit("/", 1)[-1]
    if item.key.startswith("isic2017/") and name.endswith(".jpg") and "Test" in item.key:
        s3.Bucket("bucket").copy({"Bucket": "segan", "Key": item.key}, f"photographs/{name}")
        s3.Bucket("segan").download_file(item.key, "photographs/" + name)
        s3.Bucket("segan").download_file(item.key, "photo.jpg")
"""


def walk(page: str) -> list[Block]:
    """The blocks for the cluster of this machine, from the one that starts it on."""
    blocks = [block for block in BLOCKS if block.page == page]
    (start,) = [i for i, block in enumerate(blocks) if block.text.startswith(START)]
    found = []
    for block in blocks[start:]:
        if "s3://segan" not in block.text:
            break
        found.append(block)
    return found


def commands_for_a_bucket() -> dict[str, str]:
    """The lines to run of each block of PAGES, by the block's name."""
    scripts = {}
    for block in BLOCKS:
        if block.page in PAGES and not block.text.startswith(START):
            lines = [s for s in block.lines() if not any(re.search(p, s) for p in NOT_RUN)]
            if lines:
                scripts[str(block)] = "\n".join(lines)
    return scripts


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout with its environment; its cluster is stopped at the end."""
    if not (ROOT / ".venv" / ".ready").exists():
        pytest.skip("no .venv here; run make setup")
    folder = tmp_path_factory.mktemp("walk") / "segan"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
        os.utime(folder / name, (0, 0))  # older than the environment, so that make keeps that
    (folder / ".venv").symlink_to(ROOT / ".venv")
    yield folder
    run_bash(folder, "make cluster-stop")


def run_bash(folder: Path, script: str) -> None:
    """Runs a script, which must succeed, in a user's environment."""
    home = folder.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "COLUMNS": "100"}
    command = ["bash", "-euo", "pipefail", "-xc", script]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output = done.stdout.decode(errors="replace")
    print(output)
    assert done.returncode == 0, output


def test_the_walks_and_the_other_commands_are_found() -> None:
    assert [len(walk(page)) for page in ("README.md", "docs/cluster.md")] == [1, 3]
    commands = commands_for_a_bucket()
    assert {name.partition(":")[0] for name in commands} == {*PAGES}
    assert sum(script.count("segan ") for script in commands.values()) > 25


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands_run_as_they_are_typed(checkout: Path) -> None:
    for page in ("docs/cluster.md", "README.md"):
        run_bash(checkout, "\n".join(block.text for block in walk(page)))
    assert (checkout / "first" / "ensemble.json").exists()
    assert (checkout / "runs" / "debug" / "run.json").exists()
    (checkout / "photographs").mkdir()
    shutil.rmtree(checkout / "first")
    shell = "source cluster/environment; source .venv/bin/activate"
    run_bash(checkout, f"{shell}\npython -c '{PREPARE}'\ncp photo.jpg ISIC_0000000.jpg")
    failed = []
    for name, script in commands_for_a_bucket().items():
        try:
            run_bash(checkout, f"{shell}\n{script}")
        except AssertionError as error:
            failed.append(f"{name}\n{error}")
    assert not failed, "\n\n".join(failed)

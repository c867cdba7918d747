"""A demonstration of all steps on this machine: archive, records, study, ensemble, scores, masks.

    python -m infra.local.demo [--data ARCHIVE] [--folder DIR]

Starts an S3 server and a Ray head, runs the commands that a user would type, and stops both.
Without --data it generates synthetic images.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from infra.local.cluster import ray_cluster
from infra.local.s3 import s3_server
from segan import storage
from segan.cli.console import echo, progress_bar
from segan.data.archive.reader import open_archive
from segan.errors import SeganError, StorageError
from segan.runs.run import REPORT_FILES

BUCKET = "s3://segan-demo"
# Logical CPUs: two workers use one each, and two are left for reading data.
NUM_CPUS = 4


def main() -> int:
    """Returns the exit code, which is 0 if all commands succeed."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="archive; default: synthetic images")
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="for all files; default: demo"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            server = stack.enter_context(s3_server(arguments.folder / "s3"))
            server.create_bucket(BUCKET.removeprefix("s3://"))
            os.environ.update(server.environment)
            cluster = stack.enter_context(
                ray_cluster(arguments.folder / "ray", NUM_CPUS, server.environment)
            )
            echo(f"S3 server {server.endpoint}, Ray dashboard {cluster.dashboard}")
            run_demo(arguments.data, arguments.folder, os.environ | cluster.environment)
    except SeganError as error:
        echo(f"demo: {error}")
        return error.exit_code
    except subprocess.CalledProcessError as error:
        echo(f"demo: the command above failed with exit code {error.returncode}")
        return 1
    minutes = (time.monotonic() - began) / 60
    echo(f"done in {minutes:.1f} minutes; reports, and masks/, in {arguments.folder}")
    return 0


def run_demo(data: Path | None, folder: Path, environment: Mapping[str, str]) -> None:
    """Runs the commands one after the other, under a new prefix of the bucket."""
    root = f"{BUCKET}/{time.strftime('%Y%m%dT%H%M%S')}"
    archive, records = f"{root}/archive", f"{root}/records/demo"
    study, ensemble = f"{root}/studies/demo", f"{root}/ensembles/demo"

    def segan(command: str) -> None:
        echo(f"\n$ segan {command}")
        program = [sys.executable, "-m", "segan", *shlex.split(command)]
        subprocess.run(program, env=dict(environment), check=True)

    if data is None:
        segan(f"synth {archive} --train 400 --validation 60 --test 60")
    else:
        upload_archive(data, archive)
    splits = {pair.split for pair in open_archive(archive).pairs}
    split = "test" if "test" in splits else "validation"
    segan(f"ingest {archive} {records}")
    segan(f"tune {study} --config demo data.records={records}")
    segan(f"ensemble build --study {study} --out {ensemble}")
    segan(f"evaluate {ensemble} {archive} --split {split}")
    for name, source in (("study", study), ("ensemble", ensemble)):
        download_report(f"{source}/{REPORT_FILES[1]}", folder / f"{name}.html")
    first = min(pair.image for pair in open_archive(archive).split(split))
    segan(f"predict {ensemble} {first} {folder / 'masks'}")


def download_report(report: str, target: Path) -> None:
    """Copies a report from the bucket, which ends with the demo, if there is a report."""
    try:
        storage.write_bytes(str(target), storage.read_bytes(report))
    except StorageError as error:
        echo(f"no report: {error}")


def upload_archive(folder: Path, out: str) -> None:
    """Copies a local archive into the bucket, eight files at a time."""
    source = storage.normalise(str(folder))
    names = [file.name for file in storage.list_files(source)]
    if not names:
        raise SeganError(f"{folder}: expected an archive, found no files")

    def copy_file(name: str) -> int:
        storage.write_bytes(storage.join(out, name), storage.read_bytes(storage.join(source, name)))
        return 1

    with ThreadPoolExecutor(8) as pool, progress_bar(f"copying to {out}", len(names)) as advance:
        for done in pool.map(copy_file, names):
            advance(done)


if __name__ == "__main__":
    sys.exit(main())

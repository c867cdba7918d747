"""A job brings its code: uploaded from a checkout, or as an archive in the bucket."""

from __future__ import annotations

import re
import shlex
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from infra.check_manifests import ROOT, RUNTIME_ENV, package_working_dir
from infra.local.cluster import RayCluster
from segan import storage

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

LOCATION_PROGRAM = 'import os, segan; print(segan.__file__, os.environ["PYTHONUNBUFFERED"])'


def job_output(cluster: RayCluster, working_dir: str) -> str:
    """The logs of a job that prints the location of its code."""
    client = JobSubmissionClient(cluster.dashboard)
    environment = yaml.safe_load((ROOT / RUNTIME_ENV).read_text())
    job = client.submit_job(
        entrypoint=shlex.join([sys.executable, "-c", LOCATION_PROGRAM]),
        runtime_env={**environment, "working_dir": working_dir},
    )
    deadline = time.monotonic() + 120
    while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
    logs = client.get_job_logs(job)
    assert status == JobStatus.SUCCEEDED, logs
    return logs


def test_the_checkout_is_uploaded(ray_session: RayCluster) -> None:
    logs = job_output(ray_session, str(ROOT))
    assert re.search(r"/working_dir_files/_ray_pkg_\w+/segan/__init__.py 1\n", logs), logs


def test_an_archive_in_the_bucket(ray_session: RayCluster, bucket: str, tmp_path: Path) -> None:
    """With one folder at its top, as `git archive --prefix=segan/` makes it."""
    packed, archive = package_working_dir(ROOT, tmp_path / "packed.zip"), tmp_path / "segan.zip"
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(archive, "w") as new:
        for name in old.namelist():
            new.writestr(f"segan/{name}", old.read(name))
    storage.write_bytes(f"{bucket}/code/abc.zip", archive.read_bytes())
    logs = job_output(ray_session, f"{bucket}/code/abc.zip")
    assert re.search(r"/working_dir_files/s3_\w+/segan/__init__.py 1\n", logs), logs

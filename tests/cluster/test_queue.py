"""The queue of runs: who waits for whom, without starting a training."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import ray

from ray_jobs.batch.inference import map_images
from ray_jobs.batch.ingest import cluster_executor
from ray_jobs.cluster.queue import Claim, enter_queue, read_claims, wait_for_turn
from ray_jobs.training.coordinator import RunCoordinator, queued_coordinator
from segan import storage
from segan.config import Config
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest
from segan.data.synthetic import generate_archive
from segan.errors import StoppedError, UsageError
from segan.inference.masks import MaskWriter
from segan.runs.run import Run
from tests.inference.models import save_checkpoint, small_config

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_run_waits_for_those_before_it_and_starts_when_they_have_ended(
    make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    """Of the head's 4 CPUs one is for data: 2 + 1 workers fit, and 2 more do not."""
    caplog.set_level(logging.WARNING)
    two = make_config("cluster.workers=2").cluster
    with ExitStack() as ends, ExitStack() as ends_first:
        _, first = ends_first.enter_context(queued_coordinator(Claim("s3://b/first", 2.0, 0.0)))
        _, second = ends.enter_context(queued_coordinator(Claim("s3://b/second", 1.0, 0.0)))
        _, third = ends.enter_context(queued_coordinator(Claim.of_run("s3://b/third", two)))
        assert first < second < third
        assert [*read_claims()] == [first, second, third]
        wait_for_turn(make_config().cluster, "s3://b/second", second)
        message = (
            "s3://b/third: 3 CPUs required, 1 of 4 free; the others are reserved by s3://b/first, "
            "s3://b/second"
        )
        with pytest.raises(UsageError, match=f"^{message}; not free after .*timeout_s=0.1$"):
            wait_for_turn(two, "s3://b/third", third, timeout_s=0.1)
        with pytest.raises(StoppedError):
            wait_for_turn(two, "s3://b/third", third, should_stop=lambda: True)
        caplog.clear()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(wait_for_turn, two, "s3://b/third", third)
            while f"{message}; waiting for them to end" not in caplog.messages:
                assert not waiting.done()
                time.sleep(0.05)
            ends_first.close()
            waiting.result(timeout=60)
    assert read_claims() == {}


OTHER_JOB = """
import sys
import ray
ray.init(namespace="another project", logging_level="ERROR")
group = ray.util.placement_group([{"CPU": 1}])
ray.get(group.ready())
app = ray.remote(num_cpus=int(sys.argv[1]))(type("App", (), {"ping": lambda self: 1})).remote()
ray.get(app.ping.remote())
print("ready", flush=True)
input()
"""


def test_a_run_does_not_wait_for_a_frozen_driver_of_its_own(
    make_config: Callable[..., Config],
) -> None:
    """Which has lost the lease and cannot know it, so that its claim stays."""
    claim = Claim.of_run("s3://b/run", make_config("cluster.workers=2").cluster)
    with queued_coordinator(claim), queued_coordinator(claim) as (_, number):
        wait_for_turn(make_config("cluster.workers=2").cluster, claim.name, number, timeout_s=0.1)


def test_a_run_does_not_wait_for_another_whose_driver_is_frozen(
    make_config: Callable[..., Config],
) -> None:
    """Its workers stop; when it goes on it has to queue again."""
    config = make_config("cluster.workers=2").cluster
    actor_class = ray.remote(num_cpus=0)(RunCoordinator)
    frozen, _ = enter_queue(actor_class, Claim("s3://b/frozen", 3.0, 0.0), 0.0)
    try:
        with queued_coordinator(Claim.of_run("s3://b/run", config)) as (_, number):
            wait_for_turn(config, "s3://b/run", number, timeout_s=0.1)
            ray.get(frozen.renew_claim.remote())
            assert [*read_claims()] == [number]
    finally:
        ray.kill(frozen)


@contextmanager
def other_job(cpus: int) -> Iterator[Callable[[], object]]:
    """A job of another project that holds these CPUs and one more; yields what ends it."""
    command = [sys.executable, "-c", OTHER_JOB, str(cpus)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            while process.stdout.readline() != "ready\n":
                assert process.poll() is None
            yield lambda: process.communicate("\n")
        finally:
            if process.poll() is None:
                process.communicate("\n")


def test_a_run_waits_for_other_users_of_the_cluster(make_config: Callable[..., Config]) -> None:
    config = make_config().cluster
    with other_job(2), pytest.raises(UsageError) as caught:
        wait_for_turn(config, "the run", timeout_s=0.1)
    job = r"of Ray job \w+"
    expected = (
        rf"the run: 2 CPUs required, 1 of 4 free; the others are reserved by App {job}, "
        rf"placement group {job}; not free after"
    )
    assert re.match(expected, str(caught.value)), str(caught.value)
    wait_for_turn(config, "the run")


def test_ingest_and_predict_start_when_a_cpu_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first with tasks, the second with actors of Ray Data."""
    caplog.set_level(logging.WARNING)
    uri = f"{tmp_path}/archive"
    generate_archive(
        {"train": 2}, 0, lambda name, content: storage.write_bytes(f"{uri}/{name}", content), 64
    )
    archive = open_archive(uri)
    images = [pair.image for pair in archive.pairs]
    model = save_checkpoint(Run(f"{tmp_path}/run"), small_config(), 1, 0.5, 0.4)
    task = MaskWriter(f"{tmp_path}/masks")
    jobs = [
        lambda: ingest(archive, f"{tmp_path}/records", IngestOptions(), cluster_executor),
        lambda: [*map_images(task, images, model)],
    ]
    with other_job(3) as end, ThreadPoolExecutor(2) as pool:
        started = [pool.submit(job) for job in jobs]
        said = r"none of 4 CPUs is free; waiting for App of Ray job \w+, placement group .* to end"
        while sum(bool(re.match(said, message)) for message in caplog.messages) < 2:
            assert not any(job.done() for job in started)
            time.sleep(0.05)
        end()
        manifest, rows = (job.result(timeout=100) for job in started)
    assert len(manifest.shards("train")) == 1
    assert sorted(row["image"] for row in rows) == sorted(images)
    assert not any(row.get("error") for row in rows)


def test_drivers_that_enter_at_once_get_different_numbers() -> None:
    claims = [Claim(f"run {index}", 1.0, 0.0) for index in range(4)]
    with ExitStack() as ends, ThreadPoolExecutor(4) as pool:
        numbers = [
            number
            for _, number in pool.map(
                lambda claim: ends.enter_context(queued_coordinator(claim)), claims
            )
        ]
        assert [*read_claims()] == sorted({*numbers})
        assert len(numbers) == 4

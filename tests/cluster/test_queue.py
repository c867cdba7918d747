"""The queue of runs: who waits for whom, without starting a training."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from ray_jobs.cluster.queue import Claim, read_claims, wait_for_turn
from ray_jobs.training.coordinator import queued_coordinator
from segan.config import Config
from segan.errors import StoppedError, UsageError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(200)]


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
import ray
ray.init(namespace="another project", logging_level="ERROR")
group = ray.util.placement_group([{"CPU": 1}])
ray.get(group.ready())
app = ray.remote(num_cpus=2)(type("App", (), {"ping": lambda self: 1})).remote()
ray.get(app.ping.remote())
print("ready", flush=True)
input()
"""


def test_a_run_waits_for_other_users_of_the_cluster(make_config: Callable[..., Config]) -> None:
    config = make_config().cluster
    command = [sys.executable, "-c", OTHER_JOB]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            while process.stdout.readline() != "ready\n":
                assert process.poll() is None
            with pytest.raises(UsageError) as caught:
                wait_for_turn(config, "the run", timeout_s=0.1)
        finally:
            process.communicate("\n")
    job = r"of Ray job \w+"
    expected = (
        rf"the run: 2 CPUs required, 1 of 4 free; the others are reserved by App {job}, "
        rf"placement group {job}; not free after"
    )
    assert re.match(expected, str(caught.value)), str(caught.value)
    wait_for_turn(config, "the run")


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

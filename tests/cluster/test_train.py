"""Trainings under Ray Train, with real DDP workers and the S3 server."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest
import ray

from infra.local.cluster import RayCluster
from infra.local.s3 import S3Server
from ray_jobs.training.driver import train
from segan import storage
from segan.config import Config
from segan.errors import NonFiniteError, SeganError, StoppedError, UsageError
from segan.runs.run import Run
from segan.training.launch import train_local
from segan.training.trainer import TrainingProgress
from segan.utils.signals import StopRequest
from tests.cluster.conftest import BUCKET
from tests.timing import without_timing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def run_on_ray(config: Config, uri: str) -> tuple[Run, list[TrainingProgress]]:
    run, seen = Run(uri), []
    train(config, run, seen.append)
    return run, seen


def weight_checksums(run: Run) -> list[str]:
    """Checksums of both networks in the run's last checkpoint."""
    latest = run.latest_checkpoint()
    assert latest is not None
    names = ("segmentor.safetensors", "critic.safetensors")
    return [latest.files[name]["sha256"] for name in names]


def metrics_without_times(run: Run) -> list[dict[str, object]]:
    return without_timing(run.metrics())


@pytest.fixture(scope="module")
def two_worker_config(s3: S3Server, configured: Callable[..., Config]) -> Config:
    return configured("cluster.workers=2", "training.epochs=4", "training.log_every_steps=1")


@pytest.fixture(scope="module")
def uninterrupted_run(two: Config, ray_session: RayCluster) -> tuple[Run, list[TrainingProgress]]:
    """A run of two workers from its start to its end, and what was seen of it."""
    return run_on_ray(two, f"{BUCKET}/whole")


def test_a_run_leaves_what_it_was_its_metrics_and_its_checkpoints(
    whole: tuple[Run, list[TrainingProgress]],
) -> None:
    run, seen = whole
    # 4 x 42 rows at 8 a step; the loop itself asserts at each checkpoint that ranks are equal.
    steps = [line["step"] for line in run.metrics() if line["kind"] == "step"]
    assert steps == list(range(1, 22))
    assert seen[-1].samples == seen[-1].total_samples == 21 * 8
    assert seen[-1].jaccard is not None
    latest, best = run.latest_checkpoint(), run.best_checkpoint()
    assert latest is not None
    assert best is not None
    assert latest.name == "epoch_00004"
    assert {c.name for c in run.checkpoints()} == {latest.name, "epoch_00003", best.name}
    assert run.description()["hardware"].startswith("2 workers, 2 on a node of ")
    assert latest.info.fingerprint == run.description()["identity"]["fingerprint"]
    assert any("tfevents" in file.name for file in storage.list_files(f"{run}/tensorboard"))


def test_two_workers_give_the_same_weights_twice(
    two: Config, whole: tuple[Run, list[TrainingProgress]], bucket: str
) -> None:
    again, _ = run_on_ray(two, f"{bucket}/again")
    assert weight_checksums(again) == weight_checksums(whole[0])
    assert metrics_without_times(again) == metrics_without_times(whole[0])


def test_a_killed_worker_is_started_again_where_the_checkpoint_stands(
    two: Config, whole: tuple[Run, list[TrainingProgress]], bucket: str
) -> None:
    killed = []

    def kill_once(status: TrainingProgress) -> None:
        if status.num_validations >= 2 and not killed:
            killed.append(kill_worker())

    run = Run(f"{bucket}/killed")
    train(two, run, kill_once)
    assert killed == [True]
    assert weight_checksums(run) == weight_checksums(whole[0])
    assert metrics_without_times(run) == metrics_without_times(whole[0])


def test_a_wish_stops_the_workers_in_order_and_the_run_goes_on(
    two: Config, whole: tuple[Run, list[TrainingProgress]], bucket: str
) -> None:
    run, wish = Run(f"{bucket}/stopped"), StopRequest()

    def wish_once(status: TrainingProgress) -> None:
        if status.samples >= 4 * 8:
            wish.set(signal.SIGTERM)

    with pytest.raises(StoppedError, match="stopped after step"):
        train(two, run, wish_once, stop_request=wish)
    latest = run.latest_checkpoint()
    assert latest is not None
    assert 4 * 8 < latest.samples < 21 * 8
    assert len({line["samples"] for line in run.metrics()}) == latest.samples // 8
    train(two, run, lambda status: None)
    assert weight_checksums(run) == weight_checksums(whole[0])
    assert metrics_without_times(run) == metrics_without_times(whole[0])


def test_a_torn_checkpoint_is_passed_over_by_all_workers(
    two: Config,
    whole: tuple[Run, list[TrainingProgress]],
    bucket: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Torn before the worker group is started again, which takes seconds; the driver is told."""
    run, torn = Run(f"{bucket}/torn"), []

    def kill_and_tear(status: TrainingProgress) -> None:
        if status.num_validations >= 2 and not torn:
            kill_worker()
            latest = run.latest_checkpoint()
            assert latest is not None
            content = storage.read_bytes(f"{latest.uri}/trainer.pt")
            storage.write_bytes(f"{latest.uri}/trainer.pt", content[:-1])
            torn.append(latest.name)

    train(two, run, kill_and_tear)
    assert weight_checksums(run) == weight_checksums(whole[0])
    assert metrics_without_times(run) == metrics_without_times(whole[0])
    assert f"{run}: checkpoint {torn[0]} is not whole and passed over" in capsys.readouterr().err


def test_what_is_not_finite_is_not_tried_again(
    bucket: str, configured: Callable[..., Config]
) -> None:
    before = len(list_workers())
    # Beyond float32, so the first loss is infinite.
    config = configured("cluster.workers=2", "loss.level_weights=[1e39,1,1,1,1,1,1]")
    with pytest.raises(NonFiniteError, match=r"at step 1 is not finite, on rank 0 .*; rank 1 "):
        run_on_ray(config, f"{bucket}/wild")
    assert len(list_workers()) - before == 2


def test_a_finished_run_started_again_has_nothing_to_do(
    two: Config, whole: tuple[Run, list[TrainingProgress]]
) -> None:
    run, _ = whole
    before = (weight_checksums(run), run.metrics())
    _, seen = run_on_ray(two, run.uri)
    assert seen == []
    assert (weight_checksums(run), run.metrics()) == before


def test_one_worker_on_the_cluster_is_the_same_as_local(
    bucket: str, configured: Callable[..., Config]
) -> None:
    config = configured()
    on_ray, _ = run_on_ray(config, f"{bucket}/ray")
    here = Run(f"{bucket}/here")
    train_local(config, here)
    assert weight_checksums(on_ray) == weight_checksums(here)
    assert metrics_without_times(on_ray) == metrics_without_times(here)


def list_workers() -> list[Any]:
    """The workers that there are and were."""
    from ray.util.state import list_actors

    return list_actors(filters=[("class_name", "=", "RayTrainWorker")], limit=1000)


def kill_worker() -> bool:
    """Ends one process of the worker group, as a machine that fails would."""
    pid = next(worker.pid for worker in list_workers() if worker.state == "ALIVE")

    @ray.remote(num_cpus=0)
    def kill() -> None:
        import os
        import signal

        os.kill(pid, signal.SIGKILL)

    ray.get(kill.remote())
    return True


def test_what_does_not_fit_the_cluster_is_said_at_once(
    bucket: str, configured: Callable[..., Config]
) -> None:
    with pytest.raises(UsageError, match="8 workers of 1 CPU and 1 for reading data need 9 CPU"):
        run_on_ray(configured("cluster.workers=8"), f"{bucket}/run")
    with pytest.raises(UsageError, match="need 1 GPU, the cluster has 0"):
        run_on_ray(configured("cluster.gpus_per_worker=1"), f"{bucket}/run")
    assert not Run(f"{bucket}/run").metrics()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_shard_is_named(
    split: str, bucket: str, records: str, configured: Callable[..., Config]
) -> None:
    for file in storage.list_files(records):
        content = bytearray(storage.read_bytes(f"{records}/{file.name}"))
        if file.name.startswith(split):
            content[len(content) // 2] ^= 1
        storage.write_bytes(f"{bucket}/records/{file.name}", bytes(content))
    config = configured(f"data.records={bucket}/records", "cluster.max_failures=0")
    with pytest.raises(SeganError, match=rf"{split}-\d+.*checksum mismatch"):
        run_on_ray(config, f"{bucket}/run")

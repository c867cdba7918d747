"""Training with Ray Train, real DDP workers and the S3 server."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from infra.local.cluster import RayCluster
from infra.local.s3 import S3Server
from ray_jobs.cluster.queue import Claim
from ray_jobs.training.coordinator import queued_coordinator
from ray_jobs.training.driver import train
from segan import storage
from segan.config import Config
from segan.data.records.format import read_manifest
from segan.errors import NonFiniteError, SeganError, StoppedError, UsageError
from segan.runs.run import Run
from segan.training.launch import train_local
from segan.training.trainer import TrainingProgress
from segan.utils.signals import StopRequest
from tests.cluster.conftest import BUCKET
from tests.timing import without_timing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


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
def two_worker_config(s3: S3Server, make_config: Callable[..., Config]) -> Config:
    return make_config("cluster.workers=2", "training.epochs=4", "training.log_every_steps=1")


@pytest.fixture(scope="module")
def uninterrupted_run(
    two_worker_config: Config, ray_session: RayCluster
) -> tuple[Run, list[TrainingProgress]]:
    """A run of two workers from start to end, two steps of it profiled, and its progress."""
    run, seen = Run(f"{BUCKET}/uninterrupted"), []
    train(two_worker_config, run, seen.append, num_profiled_steps=2)
    return run, seen


def test_a_run_writes_its_description_metrics_and_checkpoints(
    uninterrupted_run: tuple[Run, list[TrainingProgress]],
) -> None:
    run, seen = uninterrupted_run
    # 4 x 42 rows, 8 per step. The trainer checks at each checkpoint that the ranks are equal.
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
    device = run.description()["device"]
    if device["type"] == "cpu":
        assert (device["precision"], device["compile_mode"]) == ("float32", "none")
    assert [file.name for file in storage.list_files(f"{run}/profile")] == ["step_0000006.json.gz"]
    assert any("tfevents" in file.name for file in storage.list_files(f"{run}/tensorboard"))


def test_two_ranks_of_this_machine_equal_two_workers_of_the_cluster(
    two_worker_config: Config, uninterrupted_run: tuple[Run, list[TrainingProgress]], bucket: str
) -> None:
    local = Run(f"{bucket}/local")
    train_local(two_worker_config, local)
    assert weight_checksums(local) == weight_checksums(uninterrupted_run[0])
    assert metrics_without_times(local) == metrics_without_times(uninterrupted_run[0])


@pytest.mark.slow
def test_a_stop_request_stops_the_workers_and_the_run_resumes(
    two_worker_config: Config, uninterrupted_run: tuple[Run, list[TrainingProgress]], bucket: str
) -> None:
    run, stop_request = Run(f"{bucket}/stopped"), StopRequest()

    def stop_once(progress: TrainingProgress) -> None:
        if progress.samples >= 4 * 8:
            stop_request.set(signal.SIGTERM)

    with pytest.raises(StoppedError, match="stopped after step"):
        train(two_worker_config, run, stop_once, stop_request=stop_request)
    latest = run.latest_checkpoint()
    assert latest is not None
    assert 4 * 8 < latest.samples < 21 * 8
    assert len({line["samples"] for line in run.metrics()}) == latest.samples // 8
    train(two_worker_config, run, lambda progress: None)
    assert weight_checksums(run) == weight_checksums(uninterrupted_run[0])
    assert metrics_without_times(run) == metrics_without_times(uninterrupted_run[0])


@pytest.mark.slow
def test_a_killed_worker_is_restarted_from_the_newest_intact_checkpoint(
    two_worker_config: Config,
    uninterrupted_run: tuple[Run, list[TrainingProgress]],
    bucket: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A checkpoint is damaged before the group restarts; the driver logs a warning."""
    run, damaged = Run(f"{bucket}/damaged"), []
    after: list[int] = []

    def kill_and_damage(progress: TrainingProgress) -> None:
        if damaged:
            after.append(progress.samples)
        elif len(run.checkpoints()) >= 2:
            assert kill_worker()
            latest = run.latest_checkpoint()
            assert latest is not None
            content = storage.read_bytes(f"{latest.uri}/trainer.safetensors")
            storage.write_bytes(f"{latest.uri}/trainer.safetensors", content[:-1])
            damaged.append(latest.name)

    train(two_worker_config, run, kill_and_damage)
    assert len(damaged) == 1
    assert min(after) > 42  # not from scratch: the first epoch is not done again
    assert weight_checksums(run) == weight_checksums(uninterrupted_run[0])
    assert metrics_without_times(run) == metrics_without_times(uninterrupted_run[0])
    assert f"{run}: checkpoint {damaged[0]} is skipped: " in caplog.text


@pytest.mark.slow
def test_frozen_workers_are_started_again_and_never_with_other_records(
    bucket: str, records: str, make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    """The records are replaced while a worker is frozen; nothing is trained on the new ones."""
    changing = copy_records(records, f"{bucket}/records")
    config = make_config(
        f"data.records={changing}",
        "cluster.workers=2",
        "cluster.step_timeout_s=20",
        "training.epochs=100",
    )
    run, frozen = Run(f"{bucket}/frozen"), []

    def freeze_and_replace(progress: TrainingProgress) -> None:
        if not frozen and run.latest_checkpoint():
            frozen.append(progress.samples)
            manifest = storage.read_json(f"{changing}/manifest.json")
            storage.write_json(f"{changing}/manifest.json", manifest | {"fingerprint": "another"})
            signal_worker(signal.SIGSTOP)

    with pytest.raises(UsageError, match=f"^{changing}: data fingerprint is 'another', expected "):
        train(config, run, freeze_and_replace)
    assert [m for m in caplog.messages if m.startswith("no step for 20 s: starting the workers")]
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.info.fingerprint == read_manifest(records).fingerprint
    epochs = [line["epoch"] for line in run.metrics() if line["kind"] == "epoch"]
    assert epochs == list(range(1, len(epochs) + 1))


def test_a_loss_that_is_not_finite_is_not_retried(
    bucket: str, make_config: Callable[..., Config]
) -> None:
    before = len(list_workers())
    # Larger than float32 allows, so the first loss is infinite.
    config = make_config("cluster.workers=2", "loss.level_weights=[1e39,1,1,1,1,1,1]")
    with pytest.raises(NonFiniteError, match=r"at step 1 is not finite, on rank 0 .*; rank 1 "):
        run_on_ray(config, f"{bucket}/wild")
    assert len(list_workers()) - before == 2


def test_a_finished_run_has_nothing_left_to_do(
    two_worker_config: Config, uninterrupted_run: tuple[Run, list[TrainingProgress]]
) -> None:
    run, _ = uninterrupted_run
    before = (weight_checksums(run), run.metrics())
    _, seen = run_on_ray(two_worker_config, run.uri)
    assert seen == []
    assert (weight_checksums(run), run.metrics()) == before


def test_one_worker_on_the_cluster_waits_for_its_turn_and_equals_local_training(
    bucket: str,
    make_config: Callable[..., Config],
    uninterrupted_run: tuple[Run, list[TrainingProgress]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Both begin from the weights of another run."""
    config = make_config(f"training.init={uninterrupted_run[0].uri}")
    with (
        queued_coordinator(Claim("another run", 4.0, 0.0)) as (other, _),
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(run_on_ray, config, f"{bucket}/ray")
        while not [m for m in caplog.messages if m.endswith("waiting for them to end")]:
            assert not waiting.done()
            time.sleep(0.1)
        assert Run(f"{bucket}/ray").latest_checkpoint() is None
        ray.kill(other)
        on_ray, _ = waiting.result()
    assert "0 of 4 free; the others are reserved by another run; waiting" in caplog.text
    local = Run(f"{bucket}/local")
    train_local(config, local)
    assert weight_checksums(on_ray) == weight_checksums(local)
    assert metrics_without_times(on_ray) == metrics_without_times(local)
    initial = [r.description()["identity"]["init.critic_sha256"] for r in (on_ray, local)]
    assert initial[0] == initial[1] is not None
    random = Run(f"{bucket}/random")
    train_local(make_config(), random)
    assert weight_checksums(random) != weight_checksums(local)


def list_workers() -> list[Any]:
    """All workers, alive or not."""
    from ray.util.state import list_actors

    return list_actors(filters=[("class_name", "=", "RayTrainWorker")], limit=1000)


def kill_worker() -> bool:
    """Kills one process of the worker group."""
    return signal_worker(signal.SIGKILL)


def signal_worker(number: signal.Signals) -> bool:
    """Sends a signal to one process of the worker group."""
    pid = next(worker.pid for worker in list_workers() if worker.state == "ALIVE")

    @ray.remote(num_cpus=0)
    def send() -> None:
        import os

        os.kill(pid, number)

    ray.get(send.remote())
    return True


def test_a_run_that_does_not_fit_the_cluster_is_refused_at_once(
    bucket: str, make_config: Callable[..., Config]
) -> None:
    with pytest.raises(
        UsageError, match="8 workers of 1 CPU plus 1 CPU for reading data: 9 CPUs required, 4"
    ):
        run_on_ray(make_config("cluster.workers=8"), f"{bucket}/run")
    with pytest.raises(UsageError, match="1 GPU required, 0 available"):
        run_on_ray(make_config("cluster.gpus_per_worker=1"), f"{bucket}/run")
    assert not Run(f"{bucket}/run").metrics()


def copy_records(records: str, to: str) -> str:
    for file in storage.list_files(records):
        storage.write_bytes(f"{to}/{file.name}", storage.read_bytes(f"{records}/{file.name}"))
    return to


def copy_damaged(records: str, split: str, to: str) -> str:
    """Copies records with a changed byte in each shard of a split; returns the copy's URI."""
    for file in storage.list_files(records):
        content = bytearray(storage.read_bytes(f"{records}/{file.name}"))
        if file.name.startswith(split):
            content[len(content) // 2] ^= 1
        storage.write_bytes(f"{to}/{file.name}", bytes(content))
    return to


def test_a_damaged_shard_is_reported(
    bucket: str, records: str, make_config: Callable[..., Config]
) -> None:
    """A shard of training rows on the cluster, and one of validation rows in this process."""
    damaged = copy_damaged(records, "train", f"{bucket}/train")
    config = make_config(f"data.records={damaged}", "cluster.max_failures=0")
    with pytest.raises(SeganError, match=r"train-\d+.*checksum mismatch"):
        run_on_ray(config, f"{bucket}/run")
    damaged = copy_damaged(records, "validation", f"{bucket}/validation")
    with pytest.raises(SeganError, match=r"validation-\d+.*checksum mismatch"):
        train_local(make_config(f"data.records={damaged}"), Run(f"{bucket}/local"))

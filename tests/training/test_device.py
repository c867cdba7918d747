"""The device and the precision that `auto` stands for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_jobs.training.driver import scaling_config
from segan.config import ClusterConfig, Config, PerformanceConfig, load_config, parse_config
from segan.errors import UsageError
from segan.runs.run import Run
from segan.runs.study import Study
from segan.training.device import (
    announce_device,
    describe_device,
    device_record,
    resolve_performance,
)
from segan.training.launch import train_local
from tests.training.helpers import configure, metric_lines, same_weights

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


@pytest.mark.parametrize(
    ("given", "has_gpu", "device", "gpus"),
    [
        ({}, False, "cpu", 0),
        ({}, True, "cuda", 1),
        ({"gpus_per_worker": 0}, True, "cpu", 0),
        ({"gpus_per_worker": 0.5}, True, "cuda", 0.5),
        ({"gpus_per_worker": 2}, False, "cuda", 2),  # nodes with GPUs may still come
        ({"device": "cpu"}, True, "cpu", 0),
        ({"device": "cuda"}, False, "cuda", 1),
        ({"device": "cuda", "gpus_per_worker": 3}, True, "cuda", 3),
    ],
)
def test_resolved_device(given: dict[str, Any], has_gpu: bool, device: str, gpus: float) -> None:
    resolved = ClusterConfig(**given).resolve_device(has_gpu)
    assert (resolved.device, resolved.gpus_per_worker) == (device, gpus)
    assert resolved.resolve_device(not has_gpu) == resolved
    scaling = scaling_config(resolved)
    assert scaling.use_gpu == (device == "cuda")
    assert (scaling.resources_per_worker or {}).get("GPU", 0) == gpus


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 1), ("cuda", 0)])
def test_a_device_that_contradicts_the_gpus_is_refused(device: str, gpus: int) -> None:
    with pytest.raises(UsageError, match=f"device {device} with gpus_per_worker {gpus}"):
        load_config(None, [f"cluster.device={device}", f"cluster.gpus_per_worker={gpus}"])


@pytest.mark.parametrize(
    ("given", "device", "can_compile", "precision", "compile_mode"),
    [
        ({}, "cpu", True, "float32", "none"),
        ({}, "cuda", True, "bfloat16", "reduce-overhead"),
        ({}, "cuda", False, "bfloat16", "none"),
        ({"precision": "tf32", "compile_mode": "default"}, "cuda", False, "tf32", "default"),
        ({"precision": "bfloat16"}, "cpu", True, "bfloat16", "none"),
    ],
)
def test_resolved_performance(
    given: dict[str, Any], device: str, can_compile: bool, precision: str, compile_mode: str
) -> None:
    resolved = PerformanceConfig(**given).resolve(device, can_compile)
    assert (resolved.precision, resolved.compile_mode) == (precision, compile_mode)
    record = device_record(resolved, torch.device("cpu"))
    assert (record["precision"], record["tf32"]) == (precision, False)


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("bfloat16", "bfloat16 and TF32, channels first, compile_mode default"),
        ("tf32", "TF32, channels first, compile_mode default"),
        ("float32", "float32 without TF32, channels first, compile_mode default"),
    ],
)
def test_what_is_said_of_gpus(precision: str, said: str) -> None:
    cluster = ClusterConfig(workers=3).resolve_device(has_gpu=True)
    performance = PerformanceConfig.model_validate(
        {"precision": precision, "compile_mode": "default", "channels_last": False}
    )
    assert describe_device(cluster, performance) == f"3 workers, each with 1 GPU; {said}"


def test_a_resumed_run_keeps_its_precision_on_any_device(tmp_path: Path) -> None:
    run, study = Run(str(tmp_path / "run")), Study(str(tmp_path / "study"))
    begun = resolve_performance(Config(), "cuda", run.recorded_identity())
    assert begun.performance.precision == "bfloat16"
    run.create_or_resume(begun, "f")
    study.create_or_resume(begun, "f")
    for identity in (run.recorded_identity(), study.recorded_identity()):
        resumed = resolve_performance(Config(), "cpu", identity)
        assert resumed.performance.precision == "bfloat16"
        run.create_or_resume(resumed, "f")
        study.create_or_resume(resumed, "f")
    given = parse_config({"performance": {"precision": "float32"}})
    with pytest.raises(UsageError, match=r"performance\.precision is 'bfloat16', expected 'float"):
        run.create_or_resume(resolve_performance(given, "cpu", identity), "f")


def test_a_run_from_before_auto_resumes(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    run.create_or_resume(
        parse_config({"performance": {"precision": "float32", "compile_mode": "none"}}), "f"
    )
    resumed = resolve_performance(Config(), "cuda", run.recorded_identity())
    run.create_or_resume(resumed, "f")
    assert resumed.performance.compile_mode == "none"


@needs_no_gpu
def test_a_required_gpu_that_is_missing_is_reported(records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    with pytest.raises(UsageError, match=r"cluster\.device cuda: torch .* finds no GPU"):
        train_local(configure(records, cluster={"device": "cuda"}), run)
    assert not run.recorded_identity()


@needs_no_gpu
def test_what_a_run_uses_is_said_and_recorded(
    records: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "segan")
    run, same = Run(str(tmp_path / "run")), Run(str(tmp_path / "same"))
    train_local(configure(records, training={"epochs": 1}), run)
    assert caplog.messages == [
        "training with 1 worker, each with 1 CPU and no GPU; float32, channels last, "
        "compile_mode none"
    ]
    caplog.clear()
    description = run.description()
    assert description["config"]["cluster"]["device"] == "auto"
    assert description["config"]["performance"]["precision"] == "float32"
    assert description["device"] == {
        "type": "cpu",
        "name": None,
        "precision": "float32",
        "tf32": False,
        "channels_last": True,
        "compile_mode": "none",
    }
    # Where there is a GPU and the CPU is asked for, the GPU is said to be idle.
    monkeypatch.setattr("segan.training.launch.has_gpu", lambda: True)
    train_local(configure(records, training={"epochs": 1}, cluster={"device": "cpu"}), same)
    assert "warning: a GPU is left idle" in caplog.messages[-1]
    assert same_weights(run, same)
    assert metric_lines(run) == metric_lines(same)


@pytest.mark.parametrize(
    ("device", "precision", "cpu_capability", "expected"),
    [
        ("cpu", "bfloat16", "AVX2", True),
        ("cpu", "bfloat16", "AVX512", False),
        ("cpu", "float32", "AVX2", False),
        ("cuda", "bfloat16", "AVX2", False),
    ],
)
def test_a_cpu_that_only_emulates_bfloat16_is_warned_of(
    device: Any, precision: Any, cpu_capability: str, expected: bool, caplog: Any
) -> None:
    cluster = ClusterConfig(device=device).resolve_device(has_gpu=device == "cuda")
    performance = PerformanceConfig(precision=precision)
    announce_device(cluster, performance, device == "cuda", cpu_capability)
    warnings = [m for m in caplog.messages if "computes bfloat16 several times more slowly" in m]
    assert bool(warnings) == expected

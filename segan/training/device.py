"""The device that a training uses, and how it computes there.

`cluster.device=auto` takes a GPU where there is one, `performance.precision=auto` the fastest
precision of the device that keeps the results. Both are resolved before a run starts and recorded.
"""

from __future__ import annotations

import logging
import resource
import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from segan.config import ClusterConfig, Config, PerformanceConfig
from segan.errors import UsageError
from segan.utils.text import count_noun

logger = logging.getLogger(__name__)


def has_gpu() -> bool:
    """Whether torch can use a GPU of this machine."""
    return torch.cuda.is_available()


def can_compile() -> bool:
    """Whether torch.compile can build kernels for a GPU here.

    Triton needs a C compiler and Python's headers.
    """
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return find_spec("triton") is not None and has_compiler and headers.exists()


def resolve_local_device(cluster: ClusterConfig) -> ClusterConfig:
    """Returns the section with this machine's device instead of `auto`.

    Raises:
        UsageError: a GPU is required, and there is none, or one for each worker.
    """
    cluster = cluster.resolve_device(has_gpu())
    torch_device(cluster.device)
    if cluster.device == "cuda" and cluster.workers > torch.cuda.device_count():
        raise UsageError(
            f"cluster.workers {cluster.workers}: this machine has "
            f"{count_noun(torch.cuda.device_count(), 'GPU')}, and each worker needs its own; use "
            "fewer workers, or cluster.device=cpu"
        )
    return cluster


def torch_device(name: str, index: int | None = None) -> torch.device:
    """Returns the device of this process.

    Args:
        name: `cuda` or `cpu`.
        index: of the GPU, which becomes torch's current one; None for the current one.

    Raises:
        UsageError: torch finds no GPU.
    """
    if name != "cuda":
        return torch.device("cpu")
    if not has_gpu():
        raise UsageError(
            f"cluster.device cuda: torch {torch.__version__} finds no GPU on this machine, for a "
            "reason that segan doctor may know; with cluster.device=cpu the run uses the CPU"
        )
    if index is not None:
        torch.cuda.set_device(index)
    return torch.device("cuda", torch.cuda.current_device())


def peak_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process has used at once so far; on a CPU those of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resolve_performance(config: Config, device: str, recorded: Mapping[str, Any]) -> Config:
    """Returns the configuration with a precision instead of `auto`.

    A run or study that exists keeps the precision and the compilation that it began with, on any
    device, so that it goes on as it was.

    Args:
        device: `cuda` or `cpu`.
        recorded: the identity of the run or study that is resumed; empty for a new one.
    """
    performance = config.performance
    kept = {
        name: recorded[f"performance.{name}"]
        for name in ("precision", "compile_mode")
        if getattr(performance, name) == "auto" and f"performance.{name}" in recorded
    }
    performance = performance.model_copy(update=kept)
    if performance.precision == "auto":
        resolved = performance.resolve(device, can_compile=False)
        performance = performance.model_copy(update={"precision": resolved.precision})
    return config.model_copy(update={"performance": performance})


def describe_device(cluster: ClusterConfig, performance: PerformanceConfig) -> str:
    """The device and the way of computing, in one line.

    Args:
        cluster: with a resolved device.
        performance: with a resolved precision.
    """
    precision: str = performance.precision
    if cluster.device == "cuda":
        device = count_noun(cluster.reserved_gpus, "GPU")
        precision = {"bfloat16": "bfloat16 and TF32", "float32": "float32 without TF32"}.get(
            performance.precision, "TF32"
        )
    else:
        device = f"{count_noun(cluster.cpus_per_worker, 'CPU')} and no GPU"
        performance = performance.resolve("cpu", can_compile=False)
    memory_format = "channels last" if performance.channels_last else "channels first"
    return (
        f"{count_noun(cluster.workers, 'worker')}, each with {device}; {precision}, "
        f"{memory_format}, compile_mode {performance.compile_mode}"
    )


def announce_device(
    cluster: ClusterConfig,
    performance: PerformanceConfig,
    gpu_is_there: bool,
    cpu_capability: str = torch.backends.cpu.get_cpu_capability(),
) -> None:
    """Says what a training uses, and warns of a GPU that it leaves idle and of slow arithmetic.

    Args:
        cluster: with a resolved device.
        performance: with a resolved precision.
        gpu_is_there: whether the machine or the cluster has a GPU.
        cpu_capability: the vector instructions of this machine's CPU, in torch's words.
    """
    logger.info(f"training with {describe_device(cluster, performance)}")
    if gpu_is_there and cluster.device == "cpu":
        logger.warning(
            "warning: a GPU is left idle; cluster.device=auto, without cluster.gpus_per_worker=0, "
            "uses it"
        )
    if (cluster.device, performance.precision, cpu_capability) == ("cpu", "bfloat16", "AVX2"):
        logger.warning(
            "warning: this CPU has no AVX-512 and computes bfloat16 several times more slowly than "
            "float32; performance.precision=float32 is the fast one here"
        )


def device_record(performance: PerformanceConfig, device: torch.device) -> dict[str, Any]:
    """What run.json records of a training's device.

    Args:
        performance: resolved for the device.
    """
    is_gpu = device.type == "cuda"
    return {
        "type": device.type,
        "name": torch.cuda.get_device_name(device) if is_gpu else None,
        "precision": performance.precision,
        "tf32": is_gpu and performance.precision != "float32",
        "channels_last": performance.channels_last,
        "compile_mode": performance.compile_mode,
    }

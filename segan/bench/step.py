"""The step: the authors' order of operations, ours, and ours with each optimisation on top."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from segan.bench.baseline import BaselineStep
from segan.bench.measure import BenchReport, get_synchronize, interleave
from segan.bench.roofline import count_flops, measure_peak_flops
from segan.config import Config, PerformanceConfig
from segan.training.distributed import single_process_group
from segan.training.step import SegAN

BASELINE = "authors' order"


def bench_step(
    config: Config,
    device: torch.device,
    repeats: int,
    compiled: bool = False,
    on_progress: Callable[[str], object] = lambda line: None,
) -> BenchReport:
    """Times one step of each way, on images of noise: what is in them changes nothing.

    The floor is the operations of our step, counted, over the rate of a large matrix product or
    convolution in the way's own precision.

    Args:
        config: its `performance` is what the ways vary.
        compiled: adds the compiled ways, each of which takes minutes to be ready.
    """
    size, side = config.training.batch_size, config.augment.crop
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(size, 3, side, side, generator=generator).to(device)
    truth = (torch.rand(size, config.network.classes, side, side, generator=generator) > 0.5).to(
        device, torch.float32
    )
    with single_process_group():
        steps: dict[str, Callable[[Tensor, Tensor], object]] = {
            BASELINE: BaselineStep(config, device)
        }
        ways = _variants(device, compiled)
        for name, performance in ways.items():
            steps[name] = SegAN(
                config.model_copy(update={"performance": performance}), device
            ).train_step
        needed = count_flops(partial(steps["segan"], image, truth))
        work = {name: partial(step, image, truth) for name, step in steps.items()}
        taken = interleave(work, repeats, get_synchronize(device), on_progress)
    rates = {
        precision: measure_peak_flops(device, getattr(torch, precision))
        for precision in {way.precision for way in ways.values()}
    }
    ways[BASELINE] = ways["segan"]
    floors = {name: needed / rates[way.precision] for name, way in ways.items()}
    said = ", ".join(f"{rate / 1e12:.3g} in {name}" for name, rate in sorted(rates.items()))
    return BenchReport(
        f"step of {size} images of {side} x {side}, w = {config.network.width}, on {device.type}"
        + (f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""),
        f"{needed / 1e12:.4g} TFLOP a step over the TFLOP/s of a large product ({said})",
        tuple(one.to_timing(name, size, floors[name]) for name, one in taken.items()),
    )


def _variants(device: torch.device, compiled: bool) -> dict[str, PerformanceConfig]:
    last = PerformanceConfig(channels_last=True)
    half = last.model_copy(update={"precision": "bfloat16"})
    ways = {"segan": PerformanceConfig(channels_last=False), "+ channels last": last}
    if supports_bfloat16(device):
        ways["+ bfloat16"] = last = half
    if compiled:
        ways["+ compiled"] = last.model_copy(update={"compile_mode": "default"})
        if device.type == "cuda":
            ways["+ graphs"] = last.model_copy(update={"compile_mode": "reduce-overhead"})
    return ways


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device has arithmetic of its own for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

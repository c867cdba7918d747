"""Benchmark of the training step: a baseline, segan, and segan with each optimisation added."""

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
from segan.training.precision import set_tf32
from segan.training.step import SegAN

BASELINE = "authors' order"


def bench_step(
    config: Config,
    device: torch.device,
    repeats: int,
    compiled: bool = False,
    on_progress: Callable[[str], object] = lambda message: None,
) -> BenchReport:
    """Times one step of each variant on noise images, whose content does not affect the time.

    The roofline is the FLOPs of segan's step over the FLOP/s of a large matrix product or
    convolution in the variant's precision.

    Args:
        config: the variants replace its `performance`.
        compiled: also time the compiled variants; each takes minutes to compile.
    """
    size, side = config.training.batch_size, config.augment.crop
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(size, 3, side, side, generator=generator).to(device)
    truth = (torch.rand(size, config.network.classes, side, side, generator=generator) > 0.5).to(
        device, torch.float32
    )
    with single_process_group():
        steps: dict[str, Callable[[Tensor, Tensor], object]] = {
            BASELINE: _in_float32(BaselineStep(config, device), device)
        }
        variants = _variants(device, compiled)
        for name, performance in variants.items():
            variant = config.model_copy(update={"performance": performance})
            steps[name] = SegAN(variant, device).train_step
        flops = count_flops(partial(steps["segan"], image, truth))
        work = {name: partial(step, image, truth) for name, step in steps.items()}
        times = interleave(work, repeats, get_synchronize(device), on_progress)
    precisions = {variant.precision for variant in variants.values()}
    rates = {precision: _measure_peak_flops(device, precision) for precision in precisions}
    variants[BASELINE] = variants["segan"]
    rooflines = {name: flops / rates[variant.precision] for name, variant in variants.items()}
    shown = ", ".join(f"{rate / 1e12:.3g} in {name}" for name, rate in sorted(rates.items()))
    return BenchReport(
        f"step of {size} images of {side} x {side}, w = {config.network.width}, on {device.type}"
        + (f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""),
        f"{flops / 1e12:.4g} TFLOP per step at the TFLOP/s of a large matrix product ({shown})",
        tuple(t.to_timing(name, size, rooflines[name]) for name, t in times.items()),
    )


def _in_float32(
    step: Callable[[Tensor, Tensor], object], device: torch.device
) -> Callable[[Tensor, Tensor], object]:
    """Returns the step without TF32, which another variant may have enabled."""
    if device.type != "cuda":
        return step

    def run(image: Tensor, truth: Tensor) -> None:
        set_tf32(False)
        step(image, truth)

    return run


def _variants(device: torch.device, compiled: bool) -> dict[str, PerformanceConfig]:
    plain = PerformanceConfig(precision="float32", compile_mode="none", channels_last=False)
    latest = plain.model_copy(update={"channels_last": True})
    variants = {"segan": plain, "+ channels last": latest}
    if device.type == "cuda":
        variants["+ TF32"] = latest.model_copy(update={"precision": "tf32"})
    if supports_bfloat16(device):
        variants["+ bfloat16"] = latest = latest.model_copy(update={"precision": "bfloat16"})
    if compiled:
        variants["+ compiled"] = latest.model_copy(update={"compile_mode": "default"})
        if device.type == "cuda":
            variants["+ graphs"] = latest.model_copy(update={"compile_mode": "reduce-overhead"})
    return variants


def _measure_peak_flops(device: torch.device, precision: str) -> float:
    if device.type == "cuda":
        set_tf32(precision != "float32")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return measure_peak_flops(device, dtype)


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

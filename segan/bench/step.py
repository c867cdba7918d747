"""The step: the authors' order of operations, ours, and ours with each optimisation on top."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from segan.bench.floor import count_operations, operations_per_second
from segan.bench.measure import Report, interleave, waiting_for
from segan.bench.plain import PlainStep
from segan.config import Config, PerformanceConfig
from segan.training.distributed import single_process_group
from segan.training.step import Adversaries

PLAIN = "authors' order"


def bench_step(
    config: Config,
    device: torch.device,
    repeats: int,
    compiled: bool = False,
    tell: Callable[[str], object] = lambda line: None,
) -> Report:
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
        steps: dict[str, Callable[[Tensor, Tensor], object]] = {PLAIN: PlainStep(config, device)}
        ways = _ways(device, compiled)
        for name, performance in ways.items():
            steps[name] = Adversaries(
                config.model_copy(update={"performance": performance}), device
            ).step
        needed = count_operations(partial(steps["ours"], image, truth))
        work = {name: partial(step, image, truth) for name, step in steps.items()}
        taken = interleave(work, repeats, waiting_for(device), tell)
    rates = {
        precision: operations_per_second(device, getattr(torch, precision))
        for precision in {way.precision for way in ways.values()}
    }
    ways[PLAIN] = ways["ours"]
    floors = {name: needed / rates[way.precision] for name, way in ways.items()}
    said = ", ".join(f"{rate / 1e12:.3g} in {name}" for name, rate in sorted(rates.items()))
    return Report(
        f"step of {size} images of {side} x {side}, w = {config.network.width}, on {device.type}"
        + (f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""),
        f"{needed / 1e12:.4g} TFLOP a step over the TFLOP/s of a large product ({said})",
        tuple(one.way(name, size, floors[name]) for name, one in taken.items()),
    )


def _ways(device: torch.device, compiled: bool) -> dict[str, PerformanceConfig]:
    last = PerformanceConfig(channels_last=True)
    half = last.model_copy(update={"precision": "bfloat16"})
    ways = {"ours": PerformanceConfig(channels_last=False), "+ channels last": last}
    if bfloat16_works(device):
        ways["+ bfloat16"] = last = half
    if compiled:
        ways["+ compiled"] = last.model_copy(update={"compile": "kernels"})
        if device.type == "cuda":
            ways["+ graphs"] = last.model_copy(update={"compile": "graphs"})
    return ways


def bfloat16_works(device: torch.device) -> bool:
    """Whether the device has arithmetic of its own for it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

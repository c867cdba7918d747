"""How the networks run on a device: memory format, autocast precision and compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segan.config import PerformanceConfig
from segan.training.device import can_compile


class PrecisionPolicy:
    """Runs networks as the configuration's `performance` section says.

    Call `to_memory_format` before DDP wraps a network, since its buckets copy the weights' format.
    """

    def __init__(self, config: PerformanceConfig, device: torch.device):
        self.config, self.device = config.resolve(device.type, can_compile()), device
        channels_last = config.channels_last
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._compiled: dict[nn.Module, Callable[[Tensor], Any]] = {}

    def to_memory_format(self, network: nn.Module) -> None:
        """Converts the convolutions' weights, in place."""
        network.to(memory_format=self._memory_format)  # type: ignore[call-overload]

    def begin_step(self) -> None:
        """Sets float32's precision on a GPU; lets CUDA graphs reuse the previous step's memory."""
        if self.device.type == "cuda":
            # Of what is not under autocast too: of a validation, which is in float32.
            set_tf32(self.config.precision != "float32")
        if self.config.compile_mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()

    def __call__(self, network: nn.Module, x: Tensor) -> Any:
        """Returns `network(x)` for x float32 [B, c, H, W].

        With bfloat16, each call casts the weights again, so updated weights are never stale.
        """
        enabled = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return self._maybe_compile(network)(x.contiguous(memory_format=self._memory_format))

    def _maybe_compile(self, network: nn.Module) -> Callable[[Tensor], Any]:
        if self.config.compile_mode == "none":
            return network
        if network not in self._compiled:
            use_cuda_graphs = (
                self.config.compile_mode == "reduce-overhead" and self.device.type == "cuda"
            )
            # DDP is compiled with its network, which torch splits at the buckets, so that
            # communication still overlaps with backward.
            self._compiled[network] = torch.compile(
                network, dynamic=False, mode="reduce-overhead" if use_cuda_graphs else None
            )
        return self._compiled[network]


def set_tf32(enabled: bool) -> None:
    """Lets products and convolutions of float32 on a GPU round their operands to TF32, or not."""
    precision = "tf32" if enabled else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


def to_device(array: Any, device: torch.device) -> Tensor:
    """Copies a numpy array to a device; to a GPU through pinned memory, without waiting for it."""
    if device.type != "cuda":
        return torch.tensor(array, device=device)
    return torch.tensor(array, pin_memory=True).to(device, non_blocking=True)

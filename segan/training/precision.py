"""How the networks are computed on a device: memory layout, precision, compiled or as written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from segan.config import PerformanceConfig


class PrecisionPolicy:
    """Runs networks as `performance` says.

    Networks are laid out before DDP wraps them, since its buckets take the gradients' layout from
    the weights.
    """

    def __init__(self, config: PerformanceConfig, device: torch.device):
        self.config, self.device = config, device
        channels_last = config.channels_last
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._compiled: dict[nn.Module, Callable[[Tensor], Any]] = {}

    def to_memory_format(self, network: nn.Module) -> None:
        """Brings the weights of convolutions into the layout, in place."""
        network.to(memory_format=self._memory_format)  # type: ignore[call-overload]

    def mark_step_begin(self) -> None:
        """Lets graphs of kernels take back the memory of the step before."""
        if self.config.compile_mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()

    def __call__(self, network: nn.Module, x: Tensor) -> Any:
        """`network(x)` for x [B, c, H, W] of float32.

        In bfloat16 the weights are cast anew at each call, so nothing of a step before is used.
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
            # The DDP wrapper is compiled with what it wraps: in parts, so that gradients still go
            # out while others are computed.
            self._compiled[network] = torch.compile(
                network, dynamic=False, mode="reduce-overhead" if use_cuda_graphs else None
            )
        return self._compiled[network]


def to_device(array: Any, device: torch.device) -> Tensor:
    """A numpy array as a tensor on the device, by way of pinned memory where that is a GPU.

    The host does not wait for the copy; what is computed with the tensor comes after it.
    """
    if device.type != "cuda":
        return torch.tensor(array, device=device)
    return torch.tensor(array, pin_memory=True).to(device, non_blocking=True)

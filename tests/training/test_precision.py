"""The effect of memory format, precision and compilation on the numbers of a step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segan.networks.logistic import AdaptiveLogistic
from segan.runs.checkpoint import Checkpoint, CheckpointInfo
from segan.runs.run import Run
from segan.training.checkpointing import (
    Snapshot,
    checkpoint_tensors,
    gather_batch_norm_stats,
    load_checkpoint,
)
from segan.training.distributed import single_process_group
from segan.training.precision import to_device
from segan.training.step import SegAN
from tests.training.test_step import clone_parameters, configure, random_batch

CPU = torch.device("cpu")
NO_INFO = CheckpointInfo(epochs=0, samples=0, metrics={}, config={})
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with single_process_group():
        yield


def train_steps(steps: int = 3, device: torch.device = CPU, **performance: object) -> SegAN:
    model = SegAN(configure(performance=performance), device)
    for seed in range(steps):
        model.train_step(*(part.to(device) for part in random_batch(seed)))
    return model


def flat_gradients(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def gradient_distance(one: nn.Module, other: nn.Module) -> float:
    """Norm of the difference of two networks' gradients over the norm of the first's.

    Of gradients, since Adam's first steps make much of the rounding of those near zero.
    """
    mine, theirs = (flat_gradients(network) for network in (one, other))
    return float((mine - theirs).norm() / mine.norm())


def test_channels_last_gives_the_same_gradients_but_for_rounding() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        planes, last = train_steps(1, channels_last=False), train_steps(1, channels_last=True)
    finally:
        torch.set_default_dtype(torch.float32)
    kernel = next(p for p in last.segmentor.parameters() if p.ndim == 4 and p.shape[2] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert gradient_distance(planes.critic, last.critic) <= 1e-11  # by CPU: 0.2 to 2e-12
    # S's came through C after its first update, where Adam divides rounding by itself.
    assert gradient_distance(planes.segmentor, last.segmentor) <= 1e-9


def test_gradients_have_the_memory_format_of_their_weights() -> None:
    model = train_steps(1, channels_last=True)
    for network in (model.segmentor, model.critic):
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.stride() == parameter.stride()


def test_a_step_in_bfloat16_has_the_losses_of_one_in_float32() -> None:
    image, truth = random_batch(0)
    exact, rough = (
        SegAN(configure(performance={"precision": p}), CPU) for p in ("float32", "bfloat16")
    )
    wanted, found = exact.train_step(image, truth), rough.train_step(image, truth)
    # bfloat16 keeps 8 bits, so one rounding is 0.4 % off at most, and S and C are a few dozen deep.
    for name in ("critic_loss", "segmentor_loss", "dice_loss"):
        assert getattr(found, name).dtype == torch.float32
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=0.05, atol=0)
    assert {p.dtype for p in rough.segmentor.parameters()} == {torch.float32}


def test_evaluation_ignores_bfloat16() -> None:
    model = train_steps(1, precision="bfloat16")
    seen: list[torch.dtype] = []
    model.segmentor.down[2][0].register_forward_hook(lambda _, __, y: seen.append(y.dtype))
    image, truth = random_batch(0)
    model.train_step(image, truth)
    model.segmentor.eval()(image)
    assert seen == [torch.bfloat16, torch.float32]


def test_the_logistic_does_not_round_to_bfloat16() -> None:
    # 1 / (1 + exp(-7)) = 0.999089; the nearest that bfloat16 has are 0.996 and 1.
    p = AdaptiveLogistic()(torch.tensor([7.0], dtype=torch.bfloat16))
    assert p.item() == pytest.approx(0.999089, abs=1e-6)


def save_checkpoint(model: SegAN, folder: Path) -> Checkpoint:
    snapshot = Snapshot(CPU)
    snapshot.take(checkpoint_tensors(model, gather_batch_norm_stats(model)))
    return Run(str(folder)).save_checkpoint("step_0000002", snapshot.files(), NO_INFO)


@pytest.mark.parametrize("performance", [{"precision": "bfloat16"}, {"channels_last": False}])
def test_resuming_from_a_checkpoint_is_exact(
    performance: dict[str, object], tmp_path: Path
) -> None:
    whole = train_steps(2, **performance)
    saved = save_checkpoint(whole, tmp_path)
    later = train_steps(0, **performance)
    load_checkpoint(later, saved)
    for model in (whole, later):
        model.train_step(*random_batch(5))
    for name in ("segmentor", "critic"):
        mine, theirs = (clone_parameters(getattr(model, name)) for model in (whole, later))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_moments_take_the_memory_format_of_their_weights(tmp_path: Path) -> None:
    planes = train_steps(2, channels_last=False)
    saved = save_checkpoint(planes, tmp_path)
    last = train_steps(0, channels_last=True)
    load_checkpoint(last, saved)
    moved = last.segmentor_optimizer.state
    for parameter, before in zip(
        last.segmentor.parameters(), planes.segmentor.parameters(), strict=True
    ):
        moments = moved[parameter]["exp_avg"]
        assert moments.stride() == parameter.stride()
        assert torch.equal(moments, planes.segmentor_optimizer.state[before]["exp_avg"])


def test_a_tensor_on_the_device_is_a_copy() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = to_device(array, CPU)
    array[0, 0] = 9
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


@needs_cuda
@pytest.mark.parametrize("performance", [{}, {"precision": "bfloat16"}])
def test_on_cuda_a_step_does_not_synchronise(performance: dict[str, object]) -> None:
    device = torch.device("cuda", 0)
    model = train_steps(2, device, **performance)
    image, truth = (part.numpy() for part in random_batch(3))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.train_step(to_device(image, device), to_device(truth, device))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["default", "reduce-overhead"])
def test_on_cuda_compiled_networks_have_the_gradients_of_those_as_written(how: str) -> None:
    device = torch.device("cuda", 0)
    plain, compiled = (
        SegAN(configure(performance={"compile_mode": compile_}), device)
        for compile_ in ("none", how)
    )
    # At a rate of zero all steps are of the same weights; graphs are recorded in the second.
    for model in (plain, compiled):
        model.set_learning_rates(0.0, 0.0)
        for _ in range(4):
            model.train_step(*(part.to(device) for part in random_batch(0)))
    assert gradient_distance(plain.segmentor, compiled.segmentor) <= 1e-3
    assert gradient_distance(plain.critic, compiled.critic) <= 1e-3

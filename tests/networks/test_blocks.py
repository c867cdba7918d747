"""The blocks, worked out by hand for single pixels."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from segan.networks.blocks import GlobalConvolution, Residual, convolution


def fill_with_ones(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        nn.init.ones_(parameter)
    return network


def impulse(side: int) -> Tensor:
    x = torch.zeros(1, 1, side, side)
    x[0, 0, side // 2, side // 2] = 1
    return x


def test_a_global_convolution_reaches_its_whole_square_twice() -> None:
    y = fill_with_ones(GlobalConvolution(1, 1, 3, bias=False))(impulse(5))
    # Each branch of ones spreads the pixel over 3 x 3, and the two are summed.
    expected = torch.zeros(1, 1, 5, 5)
    expected[..., 1:4, 1:4] = 2
    assert torch.equal(y, expected)


def test_the_branches_of_a_global_convolution_go_the_two_ways_round() -> None:
    x = torch.ones(1, 1, 3, 3)
    block = fill_with_ones(GlobalConvolution(1, 1, 3, bias=True))
    # In the middle: 3 ones and the bias make 4 on the first axis. The second sums 4 4 4 and its
    # own bias: 13. Two branches: 26. In a corner a sum has 2 terms: (2 + 1) * 2 + 1 = 7, twice.
    assert block(x)[0, 0, 1, 1] == 26
    assert block(x)[0, 0, 0, 0] == 14


def test_a_strided_global_convolution_takes_every_second_pixel_of_the_full_one() -> None:
    full, strided = (fill_with_ones(GlobalConvolution(2, 1, 5, s, bias=False)) for s in (1, 2))
    x = torch.rand(1, 2, 11, 8, generator=torch.Generator().manual_seed(0))
    assert strided(x).shape == (1, 1, 6, 4)  # ceil(11 / 2), ceil(8 / 2)
    torch.testing.assert_close(strided(x), full(x)[..., ::2, ::2])


@pytest.mark.parametrize("kernel", [3, 7, 13])
def test_a_global_convolution_has_two_pairs_of_thin_kernels(kernel: int) -> None:
    shapes = sorted(
        tuple(p.shape) for p in GlobalConvolution(2, 4, kernel).parameters() if p.ndim == 4
    )
    thin = [(4, 2, kernel, 1), (4, 4, 1, kernel), (4, 2, 1, kernel), (4, 4, kernel, 1)]
    assert shapes == sorted(thin)


@pytest.mark.parametrize(
    ("kernel", "side", "out"),
    # Odd kernels round a half up; the even one pads a pixel less and rounds it down.
    [(7, 8, 4), (7, 9, 5), (5, 33, 17), (4, 8, 4), (4, 9, 4), (3, 3, 2)],
)
def test_a_stride_halves(kernel: int, side: int, out: int) -> None:
    plain = convolution(1, 1, kernel, 2, False, global_conv_min_kernel=99)
    assert isinstance(plain, nn.Conv2d)
    assert plain(torch.ones(1, 1, side, side)).shape == (1, 1, out, out)


@pytest.mark.parametrize(
    ("after", "expected"),
    # A branch of zeros adds nothing: leaky ReLU 0.2 over the sum, or over the branch alone.
    [(True, [-0.2, 2.0]), (False, [-1.0, 2.0])],
)
def test_a_residual_block_around_an_empty_branch(after: bool, expected: list[float]) -> None:
    block = Residual(1, 3, nn.BatchNorm2d, partial(nn.LeakyReLU, 0.2), after)
    for parameter in block.branch.parameters():
        nn.init.zeros_(parameter)
    y = block(torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2))
    torch.testing.assert_close(y.flatten(), torch.tensor(expected))


def test_a_residual_block_adds_its_branch() -> None:
    block = Residual(1, 2, nn.BatchNorm2d, nn.ReLU, activate_after_sum=True)
    last = block.branch[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, -3.0)
    # The last norm makes the branch -3 everywhere: relu(1 - 3) = 0 and relu(5 - 3) = 2.
    y = block(torch.tensor([1.0, 5.0]).reshape(1, 1, 1, 2))
    assert y.flatten().tolist() == [0.0, 2.0]

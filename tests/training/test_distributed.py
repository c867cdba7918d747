"""What ranks say to each other, with one rank in this process and with two in their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from segan.config import parse_config
from segan.training.distributed import (
    Council,
    average_running_statistics,
    largest_difference,
    rank,
    single_process_group,
    sum_over_ranks,
    world_size,
)
from segan.training.step import Adversaries
from tests.training.spawning import spawn_ranks

STEPS = 20
RANKS = 2


def as_rank(index: int, folder: Path) -> None:
    """One of two ranks, in a process of its own; leaves what it found in a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=index, world_size=RANKS)
    both = Adversaries(parse_config({"network": {"width": 2}}), torch.device("cpu"))
    data = torch.Generator().manual_seed(index)
    for _ in range(STEPS):
        image = torch.rand(2, 3, 64, 64, generator=data)
        both.step(image, (torch.rand(2, 1, 64, 64, generator=data) > 0.5).float())
    before = buffers(both.segmentor)
    average_running_statistics(both.segmentor)
    same = largest_difference(both.segmentor)
    with torch.no_grad():
        both.critic.blocks[0][0].tall_flat[0].bias[1] = 7.0 + 0.5 * index
    values = torch.tensor([1.0 + 9 * index, 2.0 + 18 * index])
    found = {
        "rank": (rank(), world_size()),
        "segmentor": dict(both.segmentor.named_parameters()),
        "critic": dict(both.critic.named_parameters()),
        "before": before,
        "after": buffers(both.segmentor),
        "sum": sum_over_ranks(values),
        "values": values,
        "norm": averaged_norm(index),
        "same": same,
        "council": said_in_council(index),
        "apart": largest_difference(both.critic),
    }
    torch.save(found, folder / f"rank{index}.pt")
    dist.destroy_process_group()


def said_in_council(index: int) -> tuple[list[bool], bool, list[Any]]:
    """Rank 1 alone has a wish, in its third call."""
    council = Council()
    words = [council.any_before(index == 1 and call == 3) for call in range(1, 6)]
    return words, council.last_word(), council.gather({"rank": index})


def averaged_norm(index: int) -> tuple[list[float], list[float]]:
    """A norm whose statistics are set by hand, after the average."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([[1.0, -4.0], [3.0, 8.0]][index]))
    norm.running_var.copy_(torch.tensor([[1.0, 0.25], [2.0, 0.75]][index]))
    average_running_statistics(norm)
    return norm.running_mean.tolist(), norm.running_var.tolist()


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        n: b.clone() for n, b in network.named_buffers() if n.rsplit("_", 1)[-1] in ("mean", "var")
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return spawn_ranks(as_rank, RANKS, folder, 110)


def test_ranks_know_their_place(ranks: list[dict[str, Any]]) -> None:
    assert [found["rank"] for found in ranks] == [(0, 2), (1, 2)]


def test_parameters_stay_bit_equal_on_different_data(ranks: list[dict[str, Any]]) -> None:
    one, other = ranks
    for name in one["segmentor"]:
        assert torch.equal(one["segmentor"][name], other["segmentor"][name]), name
    changed = "blocks.0.0.tall_flat.0.bias"  # by hand, after the steps
    for name in set(one["critic"]) - {changed}:
        assert torch.equal(one["critic"][name], other["critic"][name]), name


def test_running_statistics_differ_until_they_are_averaged(ranks: list[dict[str, Any]]) -> None:
    one, other = ranks
    assert any(not torch.equal(one["before"][n], other["before"][n]) for n in one["before"])
    for name, mean in one["after"].items():
        assert torch.equal(mean, other["after"][name]), name
        torch.testing.assert_close(mean, (one["before"][name] + other["before"][name]) / 2)


def test_the_average_by_hand(ranks: list[dict[str, Any]]) -> None:
    # (1 + 3) / 2, (-4 + 8) / 2; (1 + 2) / 2, (0.25 + 0.75) / 2.
    assert [found["norm"] for found in ranks] == [([2.0, 2.0], [1.5, 0.5])] * 2


def test_the_sum_leaves_its_terms(ranks: list[dict[str, Any]]) -> None:
    # 1 + 10 and 2 + 20.
    assert [found["sum"].tolist() for found in ranks] == [[11.0, 22.0]] * 2
    assert [found["values"].tolist() for found in ranks] == [[1.0, 2.0], [10.0, 20.0]]


def test_a_wish_of_one_is_heard_by_all_a_call_later(ranks: list[dict[str, Any]]) -> None:
    said = [{"rank": 0}, {"rank": 1}]
    assert [found["council"] for found in ranks] == [
        ([False, False, False, True, False], False, said)
    ] * 2


def test_the_last_wish_is_not_lost() -> None:
    with single_process_group():
        council = Council()
        assert not council.any_before(True)
        assert council.last_word()
        assert not council.last_word()


def test_the_largest_difference_is_found_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    assert [found["same"] for found in ranks] == [0.0, 0.0]
    assert [found["apart"] for found in ranks] == [0.5, 0.5]


def test_alone_in_a_group_of_its_own() -> None:
    for _ in range(2):  # a second group in the same process does not meet the first
        with single_process_group():
            assert (rank(), world_size()) == (0, 1)
            assert sum_over_ranks(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]
            norm = nn.BatchNorm2d(1)
            norm.running_mean.fill_(3.0)
            average_running_statistics(norm)
            assert norm.running_mean.item() == 3.0
    assert not dist.is_initialized()


def test_a_group_ends_with_an_error_in_it() -> None:
    with pytest.raises(RuntimeError, match="in it"), single_process_group():
        raise RuntimeError("in it")
    assert not dist.is_initialized()

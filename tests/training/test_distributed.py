"""Collectives, with one rank in this process and with two in their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from segan.config import parse_config
from segan.training.distributed import (
    HostCollectives,
    all_reduce_sum,
    broadcast_object,
    flag_distances,
    max_replica_divergence,
    rank,
    single_process_group,
    sync_batch_norm_stats,
    world_size,
)
from segan.training.step import SegAN
from tests.training.ranks import spawn_ranks

STEPS = 20
RANKS, MORE_RANKS = 2, 3


def run_rank(index: int, folder: Path) -> None:
    """One of two ranks; saves its results to a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=index, world_size=RANKS)
    model = SegAN(parse_config({"network": {"width": 2}}), torch.device("cpu"))
    data = torch.Generator().manual_seed(index)
    for _ in range(STEPS):
        image = torch.rand(2, 3, 64, 64, generator=data)
        model.train_step(image, (torch.rand(2, 1, 64, 64, generator=data) > 0.5).float())
    before = clone_stats(model.segmentor)
    sync_batch_norm_stats(model.segmentor)
    same = max_replica_divergence(model.segmentor)
    with torch.no_grad():
        model.critic.blocks[0][0].tall_flat[0].bias[1] = 7.0 + 0.5 * index
    values = torch.tensor([1.0 + 9 * index, 2.0 + 18 * index])
    found = {
        "rank": (rank(), world_size()),
        "segmentor": dict(model.segmentor.named_parameters()),
        "critic": dict(model.critic.named_parameters()),
        "before": before,
        "after": clone_stats(model.segmentor),
        "sum": all_reduce_sum(values),
        "values": values,
        "norm": synced_norm_stats(index),
        "no divergence": same,
        "collectives": run_collectives(index),
        "broadcast": broadcast_object({"from": index}),
        "divergence": max_replica_divergence(model.critic),
    }
    torch.save(found, folder / f"rank{index}.pt")
    dist.destroy_process_group()


def run_collectives(index: int) -> tuple[list[bool], bool, list[Any]]:
    """Only rank 1 sets its flag, in its third call."""
    collectives = HostCollectives()
    answers = [collectives.any_rank_async(index == 1 and call == 3) for call in range(1, 6)]
    return answers, collectives.wait(), collectives.all_gather_object({"rank": index})


def test_every_rank_gets_the_object_of_rank_zero(ranks: list[dict[str, Any]]) -> None:
    assert [rank["broadcast"] for rank in ranks] == [{"from": 0}, {"from": 0}]


def synced_norm_stats(index: int) -> tuple[list[float], list[float]]:
    """The statistics of a batch norm, set by hand, after the mean over ranks."""
    norm = nn.BatchNorm2d(2)
    norm.running_mean.copy_(torch.tensor([[1.0, -4.0], [3.0, 8.0]][index]))
    norm.running_var.copy_(torch.tensor([[1.0, 0.25], [2.0, 0.75]][index]))
    sync_batch_norm_stats(norm)
    return norm.running_mean.tolist(), norm.running_var.tolist()


def clone_stats(network: nn.Module) -> dict[str, torch.Tensor]:
    return {
        n: b.clone() for n, b in network.named_buffers() if n.rsplit("_", 1)[-1] in ("mean", "var")
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return spawn_ranks(run_rank, RANKS, folder, 110)


def test_rank_and_world_size(ranks: list[dict[str, Any]]) -> None:
    assert [found["rank"] for found in ranks] == [(0, 2), (1, 2)]


def test_parameters_stay_bit_equal_on_different_data(ranks: list[dict[str, Any]]) -> None:
    one, other = ranks
    for name in one["segmentor"]:
        assert torch.equal(one["segmentor"][name], other["segmentor"][name]), name
    changed = "blocks.0.0.tall_flat.0.bias"  # by hand, after the steps
    for name in set(one["critic"]) - {changed}:
        assert torch.equal(one["critic"][name], other["critic"][name]), name


def test_statistics_differ_until_they_are_synchronised(ranks: list[dict[str, Any]]) -> None:
    one, other = ranks
    assert any(not torch.equal(one["before"][n], other["before"][n]) for n in one["before"])
    for name, mean in one["after"].items():
        assert torch.equal(mean, other["after"][name]), name
        torch.testing.assert_close(mean, (one["before"][name] + other["before"][name]) / 2)


def test_synchronised_statistics_by_hand(ranks: list[dict[str, Any]]) -> None:
    # (1 + 3) / 2, (-4 + 8) / 2; (1 + 2) / 2, (0.25 + 0.75) / 2.
    assert [found["norm"] for found in ranks] == [([2.0, 2.0], [1.5, 0.5])] * 2


def test_the_sum_does_not_change_its_terms(ranks: list[dict[str, Any]]) -> None:
    # 1 + 10 and 2 + 20.
    assert [found["sum"].tolist() for found in ranks] == [[11.0, 22.0]] * 2
    assert [found["values"].tolist() for found in ranks] == [[1.0, 2.0], [10.0, 20.0]]


def test_a_flag_of_one_rank_reaches_all_a_call_later(ranks: list[dict[str, Any]]) -> None:
    message = [{"rank": 0}, {"rank": 1}]
    assert [found["collectives"] for found in ranks] == [
        ([False, False, False, True, False], False, message)
    ] * 2


def run_flags(index: int, folder: Path) -> None:
    """One of three ranks; in call n, rank n alone sets its flag, and nobody in the others."""
    store = dist.FileStore(str(folder / "store"), MORE_RANKS)
    dist.init_process_group("gloo", store=store, rank=index, world_size=MORE_RANKS)
    collectives = HostCollectives()
    found = [collectives.any_rank_async(call == index) for call in range(2 * MORE_RANKS)]
    torch.save([*found, collectives.wait()], folder / f"rank{index}.pt")
    collectives.close()
    dist.destroy_process_group()


def test_the_flag_of_each_of_three_ranks_reaches_all(tmp_path: Path) -> None:
    expected = [False] + [True] * MORE_RANKS + [False] * MORE_RANKS
    assert spawn_ranks(run_flags, MORE_RANKS, tmp_path, 110) == [expected] * MORE_RANKS


def test_flags_take_messages_by_the_logarithm_of_the_ranks() -> None:
    assert [flag_distances(ranks) for ranks in (1, 2, 3, 8, 9)] == [
        [],
        [1],
        [1, 2],
        [1, 2, 4],
        [1, 2, 4, 8],
    ]
    assert len(flag_distances(512)) == 9


def test_wait_returns_the_last_flag() -> None:
    with single_process_group():
        collectives = HostCollectives()
        assert not collectives.any_rank_async(True)
        assert collectives.wait()
        assert not collectives.wait()


def test_the_divergence_is_the_same_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    assert [found["no divergence"] for found in ranks] == [0.0, 0.0]
    assert [found["divergence"] for found in ranks] == [0.5, 0.5]


def test_a_group_of_one_rank() -> None:
    for _ in range(2):  # a second group in the same process does not meet the first
        with single_process_group():
            assert (rank(), world_size()) == (0, 1)
            assert all_reduce_sum(torch.tensor([1.5, 2.0])).tolist() == [1.5, 2.0]
            norm = nn.BatchNorm2d(1)
            norm.running_mean.fill_(3.0)
            sync_batch_norm_stats(norm)
            assert norm.running_mean.item() == 3.0
    assert not dist.is_initialized()


def test_a_group_ends_with_an_error_in_it() -> None:
    with pytest.raises(RuntimeError, match="in it"), single_process_group():
        raise RuntimeError("in it")
    assert not dist.is_initialized()

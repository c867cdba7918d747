"""Complete trainings of two ranks, each in its own process, stopped and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors

from segan.config import Config, parse_config
from segan.data.stream.batches import Batch, local_batches
from segan.errors import NonFiniteError
from segan.runs.run import Run
from segan.training.checkpointing import TRAINER_FILE, load_checkpoint
from segan.training.distributed import (
    batch_norm_stats,
    flatten,
    rank,
    single_process_group,
)
from segan.training.launch import build_trainer, train_local
from segan.training.resume import find_resume_checkpoint, resolve_resume
from segan.training.step import SegAN
from segan.training.trainer import Callbacks, Trainer
from tests.training.helpers import BATCH_SIZE, configure, metric_lines, same_weights, scalar_steps
from tests.training.ranks import spawn_ranks

pytestmark = pytest.mark.timeout(400)

RANKS = 2
STEPS = 16  # of 2 x 2 images, the same 4 as with one worker
STOP_STEPS = (2, 5, 6, 12)  # 6 ends an epoch, 12 begins one


def configure_ranks(records: str, steps: int) -> Config:
    return configure(
        records,
        training={"batch_size": BATCH_SIZE // RANKS, "checkpoint_every_steps": steps},
        cluster={"workers": RANKS},
    )


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "averaged": {"training": {"ema_decay": 0.9}},
    "no-critic": {"loss": {"critic": "none", "dice_weight": 1.0}},
    "scalar": {"loss": {"critic": "scalar", "cross_entropy_weight": 1.0}},
}


def configure_variant(records: str, sections: dict[str, dict[str, Any]]) -> Config:
    tree = configure_ranks(records, 0).model_dump()
    for name, section in sections.items():
        tree[name] |= section
    return parse_config(tree)


def run_rank(index: int, folder: Path, records: str) -> None:
    """One of two ranks; saves its results to a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group("gloo", store=store, rank=index, world_size=RANKS)
    found = {
        "undisturbed": train(configure_ranks(records, 0), Run(f"{folder}/undisturbed")),
        "stopped": [
            train_until_stop(configure_ranks(records, 4), Run(f"{folder}/stopped"), n)
            for n in STOP_STEPS
        ],
        "after": train(configure_ranks(records, 4), Run(f"{folder}/stopped")),
        "not finite": train_with_inf_weight(configure_ranks(records, 0), Run(f"{folder}/spoilt")),
        "variants": [
            (
                train(configure_variant(records, sections), Run(f"{folder}/whole-{name}")),
                train_until_stop(
                    configure_variant(records, sections), Run(f"{folder}/halved-{name}"), 8
                ),
                train(configure_variant(records, sections), Run(f"{folder}/halved-{name}")),
            )
            for name, sections in VARIANTS.items()
        ],
    }
    torch.save(found, folder / f"rank{index}.pt")
    dist.destroy_process_group()


def train(config: Config, run: Run, callbacks: Callbacks | None = None) -> dict[str, Any]:
    """Trains from the resume point that rank 0 finds and broadcasts, as the driver does."""
    broadcast: list[Any] = [resolve_resume(config, run) if rank() == 0 else None]
    dist.broadcast_object_list(broadcast, src=0)
    (resume_point,) = broadcast
    spec = resume_point.spec
    trainer = build_trainer(config, run, resume_point, callbacks or Callbacks())
    begun = clone_stats(trainer.model)
    trainer.train(local_batches(spec, rank()))
    return {
        "start": spec.start,
        "step": trainer.state.step,
        "stopped": trainer.stopped,
        "begun": begun,
        "all_reduce_seconds": trainer.model.all_reduce_seconds_per_step(),
        "statistics": clone_stats(trainer.model),
    }


def train_until_stop(config: Config, run: Run, step: int) -> dict[str, Any]:
    """Only rank 1 requests a stop, after a step."""
    num_calls = [0]

    def should_stop() -> bool:
        num_calls[0] += 1
        return rank() == 1 and num_calls[0] + before >= step

    dist.barrier()  # rank 0 has written its last checkpoint
    start = find_resume_checkpoint(run, print)
    before = start.samples // BATCH_SIZE if start else 0
    return train(config, run, Callbacks(should_stop=should_stop))


def train_with_inf_weight(config: Config, run: Run) -> dict[str, Any]:
    """A weight of rank 1 becomes infinite after step 7, so only that rank has NaN in step 8."""
    resume_point = resolve_resume(config, run)
    trainer = build_trainer(config, run, resume_point, Callbacks())
    before: dict[str, Any] = {}

    def with_inf_weight(source: Iterator[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(source, 1):
            if number == 8:
                if rank() == 1:
                    with torch.no_grad():
                        next(trainer.model.segmentor.parameters()).fill_(torch.inf)
                before.update({"weights": clone_weights(trainer), "ids": batch.ids})
            yield batch

    try:
        trainer.train(with_inf_weight(local_batches(resume_point.spec, rank())))
    except NonFiniteError as error:
        return before | {"said": str(error), "after": clone_weights(trainer)}
    return before


def clone_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    model = trainer.model
    named = [*model.segmentor.named_parameters("S"), *model.critic.named_parameters("C")]
    return {name: parameter.detach().clone() for name, parameter in named}


def clone_stats(model: SegAN) -> torch.Tensor:
    return flatten(batch_norm_stats(model.segmentor)).clone()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ranks(folder: Path, records: str) -> list[dict[str, Any]]:
    return spawn_ranks(run_rank, RANKS, folder, 360, records)


Ranks = list[dict[str, Any]]


def test_a_request_of_one_rank_stops_both_at_the_same_step(ranks: Ranks) -> None:
    one, other = ([(s["step"], s["stopped"]) for s in found["stopped"]] for found in ranks)
    # One step after the request; a run resumed at step 6 stops after two more steps.
    assert one == other == [(3, True), (6, True), (8, True), (13, True)]


def test_ddp_measures_the_exchange_of_gradients(ranks: Ranks) -> None:
    assert all(found["undisturbed"]["all_reduce_seconds"] > 0 for found in ranks)


def test_each_rank_resumes_with_its_own_statistics(ranks: Ranks) -> None:
    one, other = ([*found["stopped"], found["after"]] for found in ranks)
    for before, after in ((0, 1), (2, 3), (3, 4)):  # stopped within an epoch
        assert not torch.equal(one[before]["statistics"], other[before]["statistics"])
        for found in (one, other):
            assert torch.equal(found[before]["statistics"], found[after]["begun"])
    assert torch.equal(one[1]["statistics"], other[1]["statistics"])  # averaged at its end


def test_a_stopped_run_resumes_exactly(ranks: Ranks, folder: Path) -> None:
    assert [found["after"]["step"] for found in ranks] == [STEPS, STEPS]
    whole, stopped = Run(f"{folder}/undisturbed"), Run(f"{folder}/stopped")
    assert same_weights(whole, stopped)
    assert metric_lines(whole) == metric_lines(stopped)
    assert scalar_steps(stopped, "step/critic_loss") == [
        BATCH_SIZE * n for n in range(1, STEPS + 1)
    ]
    one, other = whole.latest_checkpoint(), stopped.latest_checkpoint()
    assert one is not None
    assert other is not None
    assert one.files == other.files


def test_local_training_with_two_ranks_is_the_same(
    ranks: Ranks, folder: Path, records: str
) -> None:
    """Rank 0 is this process, and the other one is started by it."""
    local = Run(f"{folder}/local")
    train_local(configure_ranks(records, 0), local)
    assert same_weights(Run(f"{folder}/undisturbed"), local)
    assert metric_lines(Run(f"{folder}/undisturbed")) == metric_lines(local)


def test_the_saved_segmentor_has_the_mean_of_the_statistics(ranks: Ranks, folder: Path) -> None:
    """So has a run that is resumed with another number of ranks: here one."""
    run = Run(f"{folder}/stopped")
    within = next(c for c in run.checkpoints() if not c.is_validated)
    trainer = load_tensors(within.read(TRAINER_FILE))
    rows = trainer["segmentor_stats"]
    assert rows.shape[0] == RANKS
    assert not torch.equal(rows[0], rows[1])
    with single_process_group():
        alone = SegAN(within.config, torch.device("cpu"))
        load_checkpoint(alone, within)
        torch.testing.assert_close(clone_stats(alone), (rows[0] + rows[1]) / 2)


def test_the_rank_with_nan_is_named_and_all_ranks_stop(ranks: Ranks) -> None:
    one, other = (found["not finite"] for found in ranks)
    message = one["said"]
    assert message == other["said"]
    assert "of critic and segmentor at step 8 is not finite, on rank 1 (critic_loss nan" in message
    assert f"with the images {', '.join(other['ids'])};" in message
    assert not any(name in message for name in one["ids"])
    for found in (one, other):
        before, after = found["weights"], found["after"]
        assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_variants_resume_exactly_with_two_ranks(ranks: Ranks, folder: Path) -> None:
    for found in ranks:
        for whole, halved, after in found["variants"]:
            assert (whole["step"], halved["step"], after["step"]) == (STEPS, 9, STEPS)
            assert torch.equal(whole["statistics"], after["statistics"])
    for name in VARIANTS:
        one, other = (
            Run(f"{folder}/whole-{name}").latest_checkpoint(),
            Run(f"{folder}/halved-{name}").latest_checkpoint(),
        )
        assert one is not None
        assert other is not None
        assert one.files == other.files, name

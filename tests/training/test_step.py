"""The alternating step against the method written out plainly, and what may not happen in it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam

from segan.config import Config, parse_config
from segan.losses import cross_entropy, dice_loss, multi_scale_l1
from segan.networks.critic import mask_image
from segan.training.distributed import single_process_group
from segan.training.step import Adversaries

Networks = tuple[nn.Module, nn.Module]


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    with single_process_group():
        yield


@pytest.fixture
def double() -> Iterator[None]:
    """Weights, buffers and DDP's buckets in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def configure(**sections: dict[str, object]) -> Config:
    sections.setdefault("network", {"width": 2})
    return parse_config(sections)


def adversaries(**sections: dict[str, object]) -> Adversaries:
    return Adversaries(configure(**sections), torch.device("cpu"))


def pair(seed: int, classes: int = 1) -> tuple[Tensor, Tensor]:
    """Images and square lesions, in the default precision."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, 64, 64, generator=generator)
    truth = torch.zeros(2, classes, 64, 64)
    truth[0, :, 10:40, 20:50] = 1
    truth[1, :, 30:60, 5:25] = 1
    return image, truth


def clones(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def reference(start: Networks, config: Config, batches: list[tuple[Tensor, Tensor]]) -> Networks:
    """The authors' order of operations: S runs twice a step and nothing is ever detached."""
    S, C = copy.deepcopy(start[0]), copy.deepcopy(start[1])
    options, weight = config.optimizer, config.loss.dice_weight
    adam_s = Adam(S.parameters(), options.learning_rate, options.betas)
    adam_c = Adam(C.parameters(), options.learning_rate, options.betas)
    for image, truth in batches:
        features = C(mask_image(image, S(image))), C(mask_image(image, truth))
        adam_c.zero_grad()
        (-multi_scale_l1(*features, config.loss)).backward()
        adam_c.step()
        for module in C.modules():
            if options.clamp_scope == "all" or isinstance(module, nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    parameter.data.clamp_(-options.clamp, options.clamp)
        maps = S(image)
        features = C(mask_image(image, maps)), C(mask_image(image, truth))
        adam_s.zero_grad()
        (multi_scale_l1(*features, config.loss) + weight * dice_loss(maps, truth)).backward()
        adam_s.step()
    return S, C


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"loss": {"reading": "per_level"}},
        {"loss": {"level_weights": [1, 1, 2, 2, 2, 2, 4], "dice_weight": 0.5}},
        {"optimizer": {"clamp_scope": "convolutions", "clamp": 0.01}},
        {"network": {"width": 2, "classes": 2}},
    ],
    ids=["paper", "per level", "weighted", "convolutions", "two classes"],
)
def test_four_steps_equal_the_plain_method(sections: dict[str, dict[str, object]]) -> None:
    both = adversaries(**copy.deepcopy(sections))
    batches = [pair(seed, both.config.network.classes) for seed in range(4)]
    S, C = reference((both.segmentor, both.critic), both.config, batches)
    start = clones(both.segmentor)
    for image, truth in batches:
        both.step(image, truth)
    for mine, theirs in ((both.segmentor, S), (both.critic, C)):
        worst = max(
            (a - b).abs().max().item() for a, b in zip(clones(mine), clones(theirs), strict=True)
        )
        assert worst <= 1e-12
    moved = [(a - b).abs().max() for a, b in zip(clones(both.segmentor), start, strict=True)]
    assert min(moved) > 1e-4


def test_losses_are_those_before_each_update() -> None:
    both = adversaries(optimizer={"learning_rate": 0.01})
    image, truth = pair(0)
    S, C = copy.deepcopy(both.segmentor), copy.deepcopy(both.critic)
    losses = both.step(image, truth)

    def distance(critic: nn.Module) -> float:
        features = critic(mask_image(image, S(image))), critic(mask_image(image, truth))
        return multi_scale_l1(*features, both.config.loss).item()

    # C is judged before its update, S against the C that was just updated and clamped.
    assert losses.critic_loss.item() == pytest.approx(distance(C), rel=1e-5)
    assert losses.segmentor_loss.item() == pytest.approx(distance(both.critic), rel=1e-5)
    assert losses.dice_loss.item() == pytest.approx(dice_loss(S(image), truth).item(), rel=1e-5)


@pytest.mark.parametrize("scope", ["all", "convolutions"])
def test_the_critic_stays_in_its_box(scope: str) -> None:
    both = adversaries(optimizer={"clamp": 0.03, "clamp_scope": scope})
    both.step(*pair(0))
    both.step(*pair(1))
    norms = [m for m in both.critic.modules() if isinstance(m, nn.BatchNorm2d)]
    free = {id(p) for norm in norms for p in norm.parameters()}
    limit = torch.tensor(0.03)
    greatest = {id(p): p.abs().max() for p in both.critic.parameters()}
    assert all(v <= limit for key, v in greatest.items() if key not in free or scope == "all")
    assert any(v == limit for v in greatest.values())
    # Gains begin near 1.
    assert (max(norm.weight.max() for norm in norms) > 0.9) == (scope == "convolutions")


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_each_network_gets_one_gradient_and_the_critic_its_first(dice_weight: float) -> None:
    both = adversaries(loss={"dice_weight": dice_weight})
    reached: list[tuple[str, int]] = []
    for name, network in (("C", both.critic), ("S", both.segmentor)):
        for i, parameter in enumerate(network.parameters()):
            parameter.register_post_accumulate_grad_hook(
                lambda _, key=(name, i): reached.append(key)
            )
    both.step(*pair(0))
    assert len(reached) == len(set(reached))
    sizes = {"C": len(clones(both.critic)), "S": len(clones(both.segmentor))}
    assert "".join(name for name, _ in reached) == "C" * sizes["C"] + "S" * sizes["S"]


def gradient_of_the_segmentor(both: Adversaries, image: Tensor, truth: Tensor) -> float:
    both.step(image, truth)
    return max(p.grad.abs().max().item() for p in both.segmentor.parameters())


@pytest.mark.parametrize(("dice_weight", "reached"), [(0.0, False), (1.0, True)])
def test_the_segmentor_learns_through_the_critic_alone(dice_weight: float, reached: bool) -> None:
    # Under any map a black image stays black, so no level can tell the two apart.
    image, truth = pair(0)
    found = gradient_of_the_segmentor(
        adversaries(loss={"dice_weight": dice_weight}), torch.zeros_like(image), truth
    )
    assert (found > 0) == reached


def test_a_perfect_map_leaves_the_segmentor_nothing_to_learn() -> None:
    both = adversaries()
    image, truth = pair(0)
    perfect = both.segmentor(image).detach()
    assert gradient_of_the_segmentor(both, image, perfect) == 0
    assert gradient_of_the_segmentor(both, image, truth) > 0


def test_the_critic_raises_the_loss() -> None:
    both = adversaries(optimizer={"learning_rate": 1e-4, "clamp": 10.0})
    for group in both.segmentor_optimizer.param_groups:
        group["lr"] = 0.0
    frozen = clones(both.segmentor)
    losses = [both.step(*pair(0)).critic_loss.item() for _ in range(8)]
    assert all(later > earlier for earlier, later in itertools.pairwise(losses))
    assert all(torch.equal(a, b) for a, b in zip(clones(both.segmentor), frozen, strict=True))


def test_the_segmentor_lowers_the_loss() -> None:
    both = adversaries(optimizer={"learning_rate": 1e-3})
    both.step(*pair(0))
    for group in both.critic_optimizer.param_groups:
        group["lr"] = 0.0
    losses = [both.step(*pair(0)).segmentor_loss.item() for _ in range(8)]
    assert losses[-1] < losses[0]


def test_running_statistics_are_updated_once_a_step() -> None:
    both = adversaries()
    norm = next(m for m in both.segmentor.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[Tensor] = []
    norm.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].detach().mean((0, 2, 3)))
    )
    for seed in range(3):
        both.step(*pair(seed))
    assert len(seen) == 3
    # 0 at first, then 0.9 of the old and 0.1 of the new.
    expected = 0.1 * (0.81 * seen[0] + 0.9 * seen[1] + seen[2])
    torch.testing.assert_close(norm.running_mean, expected)
    counts = [m.num_batches_tracked for m in both.segmentor.modules() if hasattr(m, "momentum")]
    assert {int(count) for count in counts} == {3}


def test_the_learning_rate_is_set_for_both() -> None:
    both = adversaries()
    both.set_learning_rate(0.0)
    before = clones(both.segmentor), clones(both.critic)
    both.critic.clamp(0.05)
    clamped = clones(both.critic)
    both.step(*pair(0))
    assert all(torch.equal(a, b) for a, b in zip(before[0], clones(both.segmentor), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(clamped, clones(both.critic), strict=True))
    assert [g["lr"] for g in both.critic_optimizer.param_groups] == [0.0]


def test_weights_follow_the_seed_and_the_two_networks_differ() -> None:
    one, same, other = (adversaries(training={"seed": seed}) for seed in (3, 3, 4))
    for name in ("segmentor", "critic"):
        first, again, else_ = (clones(getattr(x, name)) for x in (one, same, other))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], else_[0])


# What the paper argues against


def unmoved(network: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(clones(network), before, strict=True))


def test_without_an_adversary_the_critic_takes_no_part() -> None:
    both = adversaries(loss={"adversary": "none", "cross_entropy_weight": 1.0})
    start, critic = clones(both.segmentor), clones(both.critic)
    image, truth = pair(0)
    expected = cross_entropy(copy.deepcopy(both.segmentor)(image), truth).item()
    losses = both.step(image, truth)
    assert losses.segmentor_loss.item() == pytest.approx(expected, rel=1e-5)
    assert losses.critic_loss.item() == 0
    assert unmoved(both.critic, critic)
    assert not unmoved(both.segmentor, start)
    assert both.finite_here(image, truth)
    assert not both.not_finite.any()


def test_a_step_of_the_classic_game() -> None:
    both = adversaries(
        loss={"adversary": "scalar", "cross_entropy_weight": 0.5}, optimizer={"clamp": None}
    )
    image, truth = pair(0)
    S, C = copy.deepcopy(both.segmentor), copy.deepcopy(both.critic)
    losses = both.step(image, truth)
    maps = S(image)

    def chance(critic: nn.Module, shown: Tensor) -> Tensor:
        return torch.sigmoid(critic(mask_image(image, shown))[0])

    raised = (chance(C, truth).log() + (1 - chance(C, maps)).log()).mean()
    assert losses.critic_loss.item() == pytest.approx(raised.item(), rel=1e-4)
    lowered = -chance(both.critic, maps).log().mean() + 0.5 * cross_entropy(maps, truth)
    assert losses.segmentor_loss.item() == pytest.approx(lowered.item(), rel=1e-4)
    assert max(p.abs().max().item() for p in both.critic.parameters()) > 0.9  # nothing clamped
    assert both.finite_here(image, truth)


def test_pixels_alone_leave_the_critic_nothing_to_learn() -> None:
    one = {"reading": "per_level", "level_weights": [1, 0, 0, 0, 0, 0, 0]}
    both = adversaries(loss=one, optimizer={"clamp": None})
    critic = clones(both.critic)
    image, truth = pair(0)
    distance = (mask_image(image, copy.deepcopy(both.segmentor)(image)) - image * truth).abs()
    losses = both.step(image, truth)
    assert losses.segmentor_loss.item() == pytest.approx(distance.mean().item() / 7, rel=1e-5)
    assert unmoved(both.critic, critic)

"""The alternating step compared with a plain implementation, and its invariants."""

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
from segan.training.step import SegAN

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


def build_segan(**sections: dict[str, object]) -> SegAN:
    return SegAN(configure(**sections), torch.device("cpu"))


def random_batch(seed: int, classes: int = 1) -> tuple[Tensor, Tensor]:
    """Images and square lesions, in the default precision."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 3, 64, 64, generator=generator)
    truth = torch.zeros(2, classes, 64, 64)
    truth[0, :, 10:40, 20:50] = 1
    truth[1, :, 30:60, 5:25] = 1
    return image, truth


def clone_parameters(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def train_reference(
    start: Networks, config: Config, batches: list[tuple[Tensor, Tensor]]
) -> Networks:
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
            if options.weight_clip_scope == "all" or isinstance(module, nn.Conv2d):
                for parameter in module.parameters(recurse=False):
                    parameter.data.clamp_(-options.weight_clip, options.weight_clip)
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
        {"loss": {"reduction": "per_level"}},
        {"loss": {"level_weights": [1, 1, 2, 2, 2, 2, 4], "dice_weight": 0.5}},
        {"optimizer": {"weight_clip_scope": "convolutions", "weight_clip": 0.01}},
        {"network": {"width": 2, "classes": 2}},
    ],
    ids=["paper", "per level", "weighted", "convolutions", "two classes"],
)
def test_four_steps_equal_the_plain_method(sections: dict[str, dict[str, object]]) -> None:
    model = build_segan(**copy.deepcopy(sections))
    batches = [random_batch(seed, model.config.network.classes) for seed in range(4)]
    S, C = train_reference((model.segmentor, model.critic), model.config, batches)
    start = clone_parameters(model.segmentor)
    for image, truth in batches:
        model.train_step(image, truth)
    for mine, theirs in ((model.segmentor, S), (model.critic, C)):
        worst = max(
            (a - b).abs().max().item()
            for a, b in zip(clone_parameters(mine), clone_parameters(theirs), strict=True)
        )
        assert worst <= 1e-12
    moved = [
        (a - b).abs().max() for a, b in zip(clone_parameters(model.segmentor), start, strict=True)
    ]
    assert min(moved) > 1e-4


def test_losses_are_those_before_each_update() -> None:
    model = build_segan(optimizer={"learning_rate": 0.01})
    image, truth = random_batch(0)
    S, C = copy.deepcopy(model.segmentor), copy.deepcopy(model.critic)
    losses = model.train_step(image, truth)

    def distance(critic: nn.Module) -> float:
        features = critic(mask_image(image, S(image))), critic(mask_image(image, truth))
        return multi_scale_l1(*features, model.config.loss).item()

    # C is judged before its update, S against the C that was just updated and clamped.
    assert losses.critic_loss.item() == pytest.approx(distance(C), rel=1e-5)
    assert losses.segmentor_loss.item() == pytest.approx(distance(model.critic), rel=1e-5)
    assert losses.dice_loss.item() == pytest.approx(dice_loss(S(image), truth).item(), rel=1e-5)


@pytest.mark.parametrize("scope", ["all", "convolutions"])
def test_the_critics_weights_are_clipped(scope: str) -> None:
    model = build_segan(optimizer={"weight_clip": 0.03, "weight_clip_scope": scope})
    model.train_step(*random_batch(0))
    model.train_step(*random_batch(1))
    norms = [m for m in model.critic.modules() if isinstance(m, nn.BatchNorm2d)]
    free = {id(p) for norm in norms for p in norm.parameters()}
    limit = torch.tensor(0.03)
    greatest = {id(p): p.abs().max() for p in model.critic.parameters()}
    assert all(v <= limit for key, v in greatest.items() if key not in free or scope == "all")
    assert any(v == limit for v in greatest.values())
    # Gains begin near 1.
    assert (max(norm.weight.max() for norm in norms) > 0.9) == (scope == "convolutions")


@pytest.mark.parametrize("dice_weight", [0.0, 1.0])
def test_each_parameter_gets_one_gradient_and_the_critic_first(dice_weight: float) -> None:
    model = build_segan(loss={"dice_weight": dice_weight})
    reached: list[tuple[str, int]] = []
    for name, network in (("C", model.critic), ("S", model.segmentor)):
        for i, parameter in enumerate(network.parameters()):
            parameter.register_post_accumulate_grad_hook(
                lambda _, key=(name, i): reached.append(key)
            )
    model.train_step(*random_batch(0))
    assert len(reached) == len(set(reached))
    sizes = {"C": len(clone_parameters(model.critic)), "S": len(clone_parameters(model.segmentor))}
    assert "".join(name for name, _ in reached) == "C" * sizes["C"] + "S" * sizes["S"]


def max_segmentor_gradient(model: SegAN, image: Tensor, truth: Tensor) -> float:
    model.train_step(image, truth)
    return max(p.grad.abs().max().item() for p in model.segmentor.parameters())


@pytest.mark.parametrize(("dice_weight", "reached"), [(0.0, False), (1.0, True)])
def test_the_segmentor_learns_through_the_critic_only(dice_weight: float, reached: bool) -> None:
    # Under any map a black image stays black, so no level can tell the two apart.
    image, truth = random_batch(0)
    found = max_segmentor_gradient(
        build_segan(loss={"dice_weight": dice_weight}), torch.zeros_like(image), truth
    )
    assert (found > 0) == reached


def test_a_perfect_map_leaves_the_segmentor_nothing_to_learn() -> None:
    model = build_segan()
    image, truth = random_batch(0)
    perfect = model.segmentor(image).detach()
    assert max_segmentor_gradient(model, image, perfect) == 0
    assert max_segmentor_gradient(model, image, truth) > 0


def test_the_critic_raises_the_loss() -> None:
    model = build_segan(optimizer={"learning_rate": 1e-4, "weight_clip": 10.0})
    for group in model.segmentor_optimizer.param_groups:
        group["lr"] = 0.0
    frozen = clone_parameters(model.segmentor)
    losses = [model.train_step(*random_batch(0)).critic_loss.item() for _ in range(8)]
    assert all(later > earlier for earlier, later in itertools.pairwise(losses))
    assert all(
        torch.equal(a, b) for a, b in zip(clone_parameters(model.segmentor), frozen, strict=True)
    )


def test_the_segmentor_lowers_the_loss() -> None:
    model = build_segan(optimizer={"learning_rate": 1e-3})
    model.train_step(*random_batch(0))
    for group in model.critic_optimizer.param_groups:
        group["lr"] = 0.0
    losses = [model.train_step(*random_batch(0)).segmentor_loss.item() for _ in range(8)]
    assert losses[-1] < losses[0]


def test_running_statistics_are_updated_once_a_step() -> None:
    model = build_segan()
    norm = next(m for m in model.segmentor.modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[Tensor] = []
    norm.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].detach().mean((0, 2, 3)))
    )
    for seed in range(3):
        model.train_step(*random_batch(seed))
    assert len(seen) == 3
    # 0 at first, then 0.9 of the old and 0.1 of the new.
    expected = 0.1 * (0.81 * seen[0] + 0.9 * seen[1] + seen[2])
    torch.testing.assert_close(norm.running_mean, expected)
    counts = [m.num_batches_tracked for m in model.segmentor.modules() if hasattr(m, "momentum")]
    assert {int(count) for count in counts} == {3}


@pytest.mark.parametrize(("segmentor_rate", "critic_rate"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_each_network_has_its_own_learning_rate(segmentor_rate: float, critic_rate: float) -> None:
    model = build_segan()
    model.set_learning_rates(segmentor_rate, critic_rate)
    model.critic.clip_weights(0.05)
    before = clone_parameters(model.segmentor), clone_parameters(model.critic)
    model.train_step(*random_batch(0))
    after = clone_parameters(model.segmentor), clone_parameters(model.critic)
    unchanged = [
        all(torch.equal(a, b) for a, b in zip(was, now, strict=True))
        for was, now in zip(before, after, strict=True)
    ]
    assert unchanged == [segmentor_rate == 0, critic_rate == 0]


def test_weights_follow_the_seed_and_the_two_networks_differ() -> None:
    one, same, other = (build_segan(training={"seed": seed}) for seed in (3, 3, 4))
    for name in ("segmentor", "critic"):
        first, again, else_ = (clone_parameters(getattr(x, name)) for x in (one, same, other))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], else_[0])


# The losses that the paper compares with


def is_unchanged(network: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(clone_parameters(network), before, strict=True))


def test_without_an_adversarial_loss_the_critic_is_not_used() -> None:
    model = build_segan(loss={"critic": "none", "cross_entropy_weight": 1.0})
    start, critic = clone_parameters(model.segmentor), clone_parameters(model.critic)
    image, truth = random_batch(0)
    expected = cross_entropy(copy.deepcopy(model.segmentor)(image), truth).item()
    losses = model.train_step(image, truth)
    assert losses.segmentor_loss.item() == pytest.approx(expected, rel=1e-5)
    assert losses.critic_loss.item() == 0
    assert is_unchanged(model.critic, critic)
    assert not is_unchanged(model.segmentor, start)
    assert model.is_finite_on_this_rank(image, truth)
    assert not model.found_inf.any()


def test_a_step_with_a_scalar_critic() -> None:
    model = build_segan(
        loss={"critic": "scalar", "cross_entropy_weight": 0.5}, optimizer={"weight_clip": None}
    )
    image, truth = random_batch(0)
    S, C = copy.deepcopy(model.segmentor), copy.deepcopy(model.critic)
    losses = model.train_step(image, truth)
    maps = S(image)

    def chance(critic: nn.Module, shown: Tensor) -> Tensor:
        return torch.sigmoid(critic(mask_image(image, shown))[0])

    raised = (chance(C, truth).log() + (1 - chance(C, maps)).log()).mean()
    assert losses.critic_loss.item() == pytest.approx(raised.item(), rel=1e-4)
    lowered = -chance(model.critic, maps).log().mean() + 0.5 * cross_entropy(maps, truth)
    assert losses.segmentor_loss.item() == pytest.approx(lowered.item(), rel=1e-4)
    assert max(p.abs().max().item() for p in model.critic.parameters()) > 0.9  # nothing clamped
    assert model.is_finite_on_this_rank(image, truth)


def test_pixels_alone_leave_the_critic_nothing_to_learn() -> None:
    one = {"reduction": "per_level", "level_weights": [1, 0, 0, 0, 0, 0, 0]}
    model = build_segan(loss=one, optimizer={"weight_clip": None})
    critic = clone_parameters(model.critic)
    image, truth = random_batch(0)
    distance = (mask_image(image, copy.deepcopy(model.segmentor)(image)) - image * truth).abs()
    losses = model.train_step(image, truth)
    assert losses.segmentor_loss.item() == pytest.approx(distance.mean().item() / 7, rel=1e-5)
    assert is_unchanged(model.critic, critic)

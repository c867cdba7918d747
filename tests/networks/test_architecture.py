"""Tests of both networks in every configuration, and of S and C by themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segan.config import NetworkConfig
from segan.networks.blocks import GlobalConvolution, Residual, count_parameters
from segan.networks.critic import Critic, build_critic, mask_image
from segan.networks.segmentor import Segmentor, build_segmentor

VARIANTS = {
    "paper": {},
    "global from 9": {"global_conv_min_kernel": 9},
    "no global": {"global_conv_min_kernel": 14},
    "narrow residual": {"residual_expansion": 0.5},
    "capped residual": {"residual_max_width": 1},
    "activation before": {"residual_activation": "before"},
    "two classes": {"classes": 2},
    "spectral norm": {"spectral_norm": True},
    "group norm": {"segmentor_norm": "group"},
    "uniform weights": {"segmentor_init": "uniform"},
}
SIZES = [(128, 128), (135, 180), (180, 135), (33, 33), (33, 64), (64, 65), (97, 127)]


def narrow_config(**options: object) -> NetworkConfig:
    return NetworkConfig(width=2, **options)


def random_input(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def convolutions(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            yield name, module


class Architecture:
    """Tests of both networks; a subclass builds and runs one of them."""

    build: Callable[..., nn.Module]
    convs_with_bias: set[str]  # convolutions that no norm follows

    def channels(self, config: NetworkConfig) -> int:
        return 3

    def levels(self, network: nn.Module, x: Tensor) -> list[Tensor]:
        raise NotImplementedError

    @pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
    def config(self, request: pytest.FixtureRequest) -> NetworkConfig:
        return narrow_config(**request.param)

    def test_same_seed_same_weights_whatever_was_drawn_before(self, config: NetworkConfig) -> None:
        torch.manual_seed(1)
        first = type(self).build(config, 5).state_dict()
        torch.manual_seed(2)
        again = type(self).build(config, 5).state_dict()
        drawn = torch.rand(3)
        torch.manual_seed(2)
        assert torch.equal(drawn, torch.rand(3)), "building moved the global random state"
        assert all(torch.equal(first[name], again[name]) for name in first)

    def test_another_seed_other_weights(self) -> None:
        one, other = (dict(type(self).build(narrow_config(), s).named_parameters()) for s in (5, 6))
        assert not any(torch.equal(one[n], other[n]) for n in one if n.endswith("weight"))

    def test_a_loaded_network_gives_the_same(self, config: NetworkConfig) -> None:
        network = type(self).build(config, 0)
        x = random_input(2, self.channels(config), 64, 64)
        network(x)  # a training forward moves what running statistics there are
        other = type(self).build(config, 1)
        other.load_state_dict(load(save(network.state_dict())))
        network.eval(), other.eval()
        with torch.no_grad():
            pairs = zip(self.levels(network, x), self.levels(other, x), strict=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in pairs)

    def test_every_parameter_is_reached(self, config: NetworkConfig) -> None:
        network = type(self).build(config, 0)
        outputs = self.levels(network, random_input(2, self.channels(config), 64, 64))
        sum(level.square().sum() for level in outputs).backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name

    def test_only_convolutions_without_a_norm_have_a_bias(self, config: NetworkConfig) -> None:
        found: dict[bool, set[str]] = {True: set(), False: set()}
        for name, conv in convolutions(type(self).build(config, 0)):
            # A global convolution's four count as one.
            found[conv.bias is not None].add(re.sub(r"\.(tall_flat|flat_tall)\.\d$", "", name))
        assert found[True] == self.convs_with_bias
        assert found[False].isdisjoint(self.convs_with_bias)

    def test_initial_weights_have_the_variance_of_the_authors_code(self) -> None:
        network = type(self).build(NetworkConfig(width=8), 0)
        for name, conv in convolutions(network):
            n = conv.weight.numel()
            expected = 2 / (math.prod(conv.kernel_size) * conv.out_channels)
            # A sample variance of n normal draws spreads by sqrt(2 / n) of itself.
            error = conv.weight.detach().square().mean().item() / expected - 1
            assert abs(error) < 5 * math.sqrt(2 / n), name
            assert conv.bias is None or not conv.bias.any(), name

    def test_initial_gains_are_about_1_and_offsets_0(self) -> None:
        network = type(self).build(NetworkConfig(width=8), 0)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        gains = torch.cat([norm.weight.detach() for norm in norms])
        # Normal (1, 0.02) over n > 200 gains: their mean spreads by 0.02 / sqrt(n).
        assert abs(gains.mean() - 1) < 5 * 0.02 / math.sqrt(len(gains))
        assert gains.std().item() == pytest.approx(0.02, rel=0.25)
        assert not any(norm.bias.any() for norm in norms)


class TestSegmentor(Architecture):
    build = staticmethod(build_segmentor)
    convs_with_bias = {"down.0.0", "out"}  # noqa: RUF012

    def levels(self, network: nn.Module, x: Tensor) -> list[Tensor]:
        return [network(x)]

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_a_map_is_as_large_as_its_image(self, size: tuple[int, int]) -> None:
        maps = build_segmentor(narrow_config())(random_input(2, 3, *size))
        assert maps.shape == (2, 1, *size)
        assert maps.dtype == torch.float32

    def test_maps_are_probabilities_one_a_class(self, config: NetworkConfig) -> None:
        maps = build_segmentor(config)(random_input(2, 3, 64, 67))
        assert maps.shape == (2, config.classes, 64, 67)
        assert 0 <= maps.min() < maps.max() <= 1

    def test_the_logistic_is_the_last_step(self) -> None:
        segmentor, x = build_segmentor(narrow_config()).eval(), random_input(1, 3, 64, 64)
        segmentor.logistic.set_k(0.3)
        with torch.no_grad():
            expected = 1 / (1 + torch.exp(-segmentor.logits(x) / 0.3))
            torch.testing.assert_close(segmentor(x), expected)

    @pytest.mark.parametrize("size", [(32, 32), (33, 32), (20, 200)], ids=str)
    def test_an_image_too_small_to_halve_six_times_is_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(AssertionError, match="S needs 33 pixels a side"):
            build_segmentor(narrow_config())(random_input(2, 3, *size))

    def test_in_evaluation_images_of_a_batch_are_independent(self) -> None:
        # In double precision, as the sums of single ones depend on how a batch is cut for them.
        segmentor = build_segmentor(narrow_config()).double().eval()
        x = random_input(3, 3, 64, 64).double()
        with torch.no_grad():
            torch.testing.assert_close(segmentor(x)[1:2], segmentor(x[1:2]))

    def test_size_at_the_papers_width(self) -> None:
        # reference/segan.md: 159.7 million parameters and 19.6 GMAC an image of 128 x 128.
        segmentor = build_on_meta(Segmentor)
        assert count_parameters(segmentor) == 159_668_161
        assert count_macs(segmentor) == pytest.approx(19.6e9, rel=1e-3)

    @pytest.mark.parametrize(
        ("global_conv_min_kernel", "expected"),
        # U1 to U6 have kernels 3, 7, 7, 9, 9, 11.
        [(3, [0, 1, 2, 3, 4, 5]), (7, [1, 2, 3, 4, 5]), (9, [3, 4, 5]), (11, [5]), (12, [])],
    )
    def test_global_convolutions_are_the_decoders(
        self, global_conv_min_kernel: int, expected: list[int]
    ) -> None:
        segmentor = build_segmentor(narrow_config(global_conv_min_kernel=global_conv_min_kernel))
        assert [i for i, b in enumerate(segmentor.up) if is_global(b[0])] == expected
        assert not any(is_global(module) for module in segmentor.down.modules())

    def test_every_block_but_the_first_is_normalised(self) -> None:
        segmentor = build_segmentor(narrow_config())
        normed = [isinstance(block[1], nn.BatchNorm2d) for block in segmentor.down]
        assert normed == [False, True, True, True, True, True]
        assert all(isinstance(block[1], nn.BatchNorm2d) for block in segmentor.up)

    def test_blocks_halve_and_double_the_widths_of_figure_1(self) -> None:
        segmentor, found = build_segmentor(narrow_config()), []
        for block in [*segmentor.down, *segmentor.up]:
            block.register_forward_hook(lambda _, __, y: found.append(tuple(y.shape[1:])))
        segmentor(random_input(2, 3, 128, 128))
        down = [(2, 64, 64), (4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]
        up = [(32, 4, 4), (16, 8, 8), (8, 16, 16), (4, 32, 32), (2, 64, 64), (2, 128, 128)]
        assert found == down + up

    @pytest.mark.parametrize(
        ("options", "inner"),
        [
            # Channels are w times 1 2 4 8 16 32 down and 16 8 4 2 1 1 up, here w = 2. Twice as
            # many, but never more than 16 w = 32:
            ({}, [4, 8, 16, 32, 32, 32, 32, 32, 16, 8, 4, 4]),
            ({"residual_expansion": 0.5}, [1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1, 1]),
            ({"residual_max_width": 1}, [2] * 12),
            # A quarter of 2 channels rounds to 0, and one is the least.
            ({"residual_expansion": 0.25}, [1, 1, 2, 4, 8, 16, 8, 4, 2, 1, 1, 1]),
        ],
    )
    def test_width_inside_residual_blocks(
        self, options: dict[str, float], inner: list[int]
    ) -> None:
        segmentor = build_segmentor(narrow_config(**options))
        blocks = [m for m in segmentor.modules() if isinstance(m, Residual)]
        assert [block.branch[0].out_channels for block in blocks] == inner

    def test_where_the_residual_activation_stands_changes_the_maps(self) -> None:
        x = random_input(2, 3, 64, 64)
        after = build_segmentor(narrow_config())
        before = build_segmentor(narrow_config(residual_activation="before"))
        before.load_state_dict(after.state_dict())
        assert not torch.allclose(after(x), before(x))

    def test_with_group_norms_an_image_has_the_same_map_in_any_batch(self) -> None:
        """In training and in evaluation; nothing is left that depends on the batch."""
        segmentor = build_segmentor(NetworkConfig(width=8, segmentor_norm="group"))
        x = random_input(3, 3, 64, 64)
        norms = [m for m in segmentor.modules() if isinstance(m, nn.GroupNorm)]
        assert {norm.num_groups for norm in norms} == {8}
        assert [name for name, _ in segmentor.named_buffers()] == ["logistic.k"]
        in_batch, alone = segmentor.train()(x)[:1], segmentor.eval()(x[:1])
        torch.testing.assert_close(in_batch, alone, atol=1e-4, rtol=0)

    def test_a_group_norm_has_as_many_groups_as_divide_the_channels(self) -> None:
        segmentor = build_segmentor(NetworkConfig(width=6, segmentor_norm="group"))
        norms = [m for m in segmentor.modules() if isinstance(m, nn.GroupNorm)]
        groups = {norm.num_channels: norm.num_groups for norm in norms}
        assert (groups[6], groups[12], groups[24], groups[96]) == (2, 4, 8, 8)

    def test_uniform_initial_weights_are_within_the_root_of_their_inputs(self) -> None:
        """torch's default: uniform in +-1 / sqrt(c_in k k), so its deviation is that / sqrt(3)."""
        segmentor = build_segmentor(NetworkConfig(width=8, segmentor_init="uniform"), seed=3)
        for name, conv in convolutions(segmentor):
            limit = conv.weight[0].numel() ** -0.5
            assert conv.weight.abs().max() <= limit, name
            if conv.weight.numel() > 5000:
                assert conv.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05), (
                    name
                )
        again = build_segmentor(NetworkConfig(width=8, segmentor_init="uniform"), seed=3)
        assert torch.equal(segmentor.out.weight, again.out.weight)

    def test_only_norms_and_steepness_are_buffers(self) -> None:
        names = {
            name.rsplit(".", 1)[-1] for name, _ in build_segmentor(narrow_config()).named_buffers()
        }
        assert names == {"running_mean", "running_var", "num_batches_tracked", "k"}


class TestCritic(Architecture):
    build = staticmethod(build_critic)
    convs_with_bias = {"blocks.0.0"}  # noqa: RUF012

    def channels(self, config: NetworkConfig) -> int:
        return 3 * config.classes

    def levels(self, network: nn.Module, x: Tensor) -> list[Tensor]:
        return network(x)

    def test_levels_are_the_image_and_six_halvings(self, config: NetworkConfig) -> None:
        x = random_input(2, 3 * config.classes, 128, 128)
        levels = build_critic(config)(x)
        assert levels[0] is x
        assert [tuple(level.shape[1:]) for level in levels[1:]] == [
            (2, 64, 64), (4, 32, 32), (8, 16, 16), (16, 8, 8), (16, 4, 4), (16, 2, 2)
        ]  # fmt: skip

    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_any_size_passes(self, size: tuple[int, int]) -> None:
        levels = build_critic(narrow_config())(random_input(2, 3, *size))
        assert len(levels) == 7
        assert all(level.isfinite().all() for level in levels)

    def test_size_at_the_papers_width(self) -> None:
        # reference/segan.md: 14.5 million parameters and 2.37 GMAC an image of 128 x 128.
        critic = build_on_meta(Critic)
        assert count_parameters(critic) == 14_484_352
        assert count_macs(critic) == pytest.approx(2.37e9, rel=2e-3)

    @pytest.mark.parametrize(
        ("global_conv_min_kernel", "expected"),
        # C1 to C6 have kernels 13, 11, 9, 7, 4, 3; an even one is never global.
        [(3, [0, 1, 2, 3, 5]), (4, [0, 1, 2, 3]), (7, [0, 1, 2, 3]), (9, [0, 1, 2]), (14, [])],
    )
    def test_global_convolutions(self, global_conv_min_kernel: int, expected: list[int]) -> None:
        critic = build_critic(narrow_config(global_conv_min_kernel=global_conv_min_kernel))
        assert [i for i, b in enumerate(critic.blocks) if is_global(b[0])] == expected

    def test_every_block_but_the_first_is_normalised(self) -> None:
        normed = [isinstance(b[1], nn.BatchNorm2d) for b in build_critic(narrow_config()).blocks]
        assert normed == [False, True, True, True, True, True]

    def test_has_no_buffers(self, config: NetworkConfig) -> None:
        # Except the vectors of spectral norm, which are equal on every rank.
        names = [name for name, _ in build_critic(config).named_buffers()]
        assert [name for name in names if "parametrizations" not in name] == []
        assert bool(names) == config.spectral_norm

    @pytest.mark.parametrize("scope", ["all", "convolutions"])
    def test_clip_weights(self, scope: str) -> None:
        critic = build_critic(narrow_config())
        before = {name: p.clone() for name, p in critic.named_parameters()}
        critic.clip_weights(0.05, scope)
        inside = {f"{name}.weight" for name, _ in convolutions(critic)}
        for name, parameter in critic.named_parameters():
            is_clipped = scope == "all" or name in inside or name.startswith("blocks.0.")
            expected = before[name].clamp(-0.05, 0.05) if is_clipped else before[name]
            assert torch.equal(parameter, expected), name
        gains = [m.weight for m in critic.modules() if isinstance(m, nn.BatchNorm2d)]
        assert (max(gain.max() for gain in gains) > 0.05) == (scope == "convolutions")


def test_an_image_is_masked_by_each_map_in_turn() -> None:
    image = torch.tensor([0.2, 0.4, 0.8]).reshape(1, 3, 1, 1).repeat(1, 1, 1, 2)
    maps = torch.tensor([[1.0, 0.0], [0.5, 1.0]]).reshape(1, 2, 1, 2)
    # Left pixel: 1 and 0.5 times (0.2, 0.4, 0.8); right pixel: 0 and 1 times the same.
    expected = [[0.2, 0.0], [0.4, 0.0], [0.8, 0.0], [0.1, 0.2], [0.2, 0.4], [0.4, 0.8]]
    masked = mask_image(image, maps)
    assert masked.shape == (1, 6, 1, 2)
    torch.testing.assert_close(masked[0, :, 0], torch.tensor(expected))


def is_global(module: nn.Module) -> bool:
    return isinstance(module, GlobalConvolution)


def build_on_meta(network: Callable[[NetworkConfig], nn.Module]) -> nn.Module:
    """Builds a network of the paper's width on the meta device."""
    with torch.device("meta"):
        return network(NetworkConfig())


def count_macs(network: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 128, 128, device="meta"))
    return counter.get_total_flops() / 2


def test_the_scalar_critic_has_one_score_an_image() -> None:
    critic, x = build_critic(narrow_config(), scalar=True), random_input(3, 3, 64, 64)
    (scores,) = critic(x)
    assert scores.shape == (3,)
    plain = build_critic(narrow_config())
    plain.load_state_dict({k: v for k, v in critic.state_dict().items() if "head" not in k})
    expected = plain(x)[-1].mean((2, 3)) @ critic.head.weight[0] + critic.head.bias
    torch.testing.assert_close(scores, expected)
    scores.sum().backward()
    assert all(p.grad is not None for p in critic.parameters())


@pytest.mark.parametrize("scalar", [False, True])
def test_spectral_norm_bounds_every_layer_of_the_critic(scalar: bool) -> None:
    critic = build_critic(narrow_config(spectral_norm=True), scalar=scalar)
    x = random_input(2, 3, 64, 64)
    for _ in range(50):  # a power iteration each
        critic(x)
    found = {
        name: torch.linalg.matrix_norm(module.weight.flatten(1), 2).item()
        for name, module in critic.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    assert len(found) == 4 * 4 + 2 + scalar  # four to a global convolution
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.02)


def test_spectral_norm_starts_from_the_same_weights() -> None:
    free, bound = (
        dict(build_critic(narrow_config(spectral_norm=s)).named_parameters()) for s in (0, 1)
    )
    for name, weight in free.items():
        original = name.replace(".weight", ".parametrizations.weight.original")
        assert torch.equal(weight, bound.get(original, bound.get(name))), name

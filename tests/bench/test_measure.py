"""Benchmark reports, computed by hand, and that all variants do the same work."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segan.bench.baseline import BaselineStep
from segan.bench.frames import FileDataset, make_loader, write_image_files, write_records
from segan.bench.measure import BenchReport, Timing, interleave
from segan.bench.roofline import count_flops
from segan.data.records.format import read_manifest
from segan.training.distributed import single_process_group
from segan.training.step import SegAN
from tests.samples import read_samples
from tests.training.test_step import clone_parameters, configure, random_batch

CPU = torch.device("cpu")


def test_a_timing_is_its_median_repeat() -> None:
    timing = Timing("one", images=50, seconds=(1.0, 4.0, 2.0), roofline=0.5)
    assert (timing.median, timing.rate, timing.roofline_rate, timing.roofline_fraction) == (
        2.0,
        25.0,
        100.0,
        0.25,
    )


def test_speedups_are_per_image_and_relative_to_the_first() -> None:
    # 2 s for 10 images and 1 s for 20: four times the rate.
    timings = (Timing("a", 10, (2.0,), 0.5), Timing("b", 20, (1.0,), 0.1, {"rank, MB": 3.0}))
    found = BenchReport("work", "none", timings).to_dict()
    assert [timing["speedup"] for timing in found["timings"]] == [1.0, 4.0]
    assert found["timings"][0]["roofline_fraction"] == 0.25
    assert found["timings"][1]["rank, MB"] == 3.0
    assert found["machine"]["torch"] == torch.__version__


def test_repeats_are_interleaved_after_a_warm_up() -> None:
    order: list[str] = []
    times = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert [(len(one.seconds), len(one.cpu)) for one in times.values()] == [(2, 2), (2, 2)]


def test_flops_are_counted_forward_and_backward() -> None:
    # 3 x 3 from 2 channels to 4 over 5 x 5 pixels: 9 x 2 x 4 x 25 products, with their sums 3600;
    # as many for the gradient of the weights and for that of the input.
    x = torch.rand(1, 2, 5, 5, requires_grad=True)
    weight = torch.rand(4, 2, 3, 3, requires_grad=True)
    assert count_flops(lambda: F.conv2d(x, weight, padding=1)) == 3600
    assert count_flops(lambda: F.conv2d(x, weight, padding=1).sum().backward()) == 3 * 3600


def test_the_baseline_step_gives_the_same_weights() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with single_process_group():
            ours = SegAN(configure(), CPU)
            plain = BaselineStep(configure(), CPU)
            # With the same memory layout, on which the rounding of sums depends.
            plain.segmentor.load_state_dict(copy.deepcopy(ours.segmentor.state_dict()))
            for seed in range(2):
                ours.train_step(*random_batch(seed))
                plain(*random_batch(seed))
    finally:
        torch.set_default_dtype(torch.float32)

    def worst(one: nn.Module, other: nn.Module) -> float:
        pairs = zip(clone_parameters(one), clone_parameters(other), strict=True)
        return max((a - b).abs().max().item() for a, b in pairs)

    # Adam amplifies rounding where gradients are near zero; its steps are at most 0.003.
    assert worst(ours.critic, plain.critic) <= 1e-6
    assert worst(ours.segmentor, plain.segmentor) <= 1e-6


def test_the_baseline_step_takes_a_third_more_flops() -> None:
    # In units of forward passes: 4 S + 12 C against 3 S + 9 C, except for the first layers, whose
    # input mostly needs no gradient.
    image, truth = random_batch(0)
    with single_process_group():
        plain, ours = BaselineStep(configure(), CPU), SegAN(configure(), CPU)
        found = [
            count_flops(lambda step=step: step(image, truth)) for step in (plain, ours.train_step)
        ]
    assert found[0] / found[1] == pytest.approx(4 / 3, rel=0.05)


def test_image_files_are_those_of_the_records(tmp_path: Path) -> None:
    records, files = str(tmp_path / "records"), tmp_path / "files"
    files.mkdir()
    manifest = write_records(records, 7)
    assert read_manifest(records) == manifest
    write_image_files(records, manifest, "train", files)
    frames, found = read_samples(records, manifest, "train"), FileDataset(str(files))
    by_id = dict(zip(frames.ids, zip(frames.image, frames.mask, strict=True), strict=True))
    for path, (image, mask) in zip(found.images, found, strict=True):
        kept, truth = by_id[path.stem]
        assert ((mask > 0) == truth[0]).all()
        # The error of JPEG at quality 95.
        assert abs(image.astype(int) - kept.astype(int)).mean() < 5
    sizes = [image.shape for image, _ in make_loader(str(files), 3, workers=1)]
    assert sizes == [(3, 135, 180, 3)] * 2

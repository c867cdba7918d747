"""The stream's benchmark on the cluster, as small as possible."""

from __future__ import annotations

import pytest

from ray_jobs.batch.bench import bench_stream
from segan.data.records.format import read_manifest
from segan.data.stream.batches import StreamSpec
from segan.data.stream.sampler import DeterministicSampler

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.mark.slow
def test_the_stream_is_timed_against_its_baselines(records: str) -> None:
    spec = StreamSpec(records, DeterministicSampler(read_manifest(records), "train", 0), 2, 0, 3, 2)
    report = bench_stream(spec, repeats=1)
    # 84 rows are 14 steps of 6; the first batches of both ranks do not count. DataLoader: 2 x 14
    # batches of 3, less one. Each epoch is split evenly: 21 rows, that is 7 batches, per rank.
    assert {timing.name: timing.images for timing in report.timings} == {
        "stream": 78,
        "torch DataLoader": 81,
        "execution per epoch": 78,
    }

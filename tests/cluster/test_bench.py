"""The stream's benchmark on the cluster, as small as it goes."""

from __future__ import annotations

import pytest

from ray_jobs.bench import bench_stream
from segan.data.batches import Plan
from segan.data.records import read_manifest
from segan.data.sequence import Sequence

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


def test_the_stream_is_timed_beside_its_rivals(records: str) -> None:
    plan = Plan(records, Sequence(read_manifest(records), "train", 0), 2, 0, 3, 2)
    report = bench_stream(plan, repeats=1)
    # 84 rows are 14 steps of 6; the first batches of both ranks do not count. Files: 2 x 14
    # batches of 3 less one. Each epoch is split evenly: 21 rows, so 7 batches, to a rank.
    assert {way.name: way.images for way in report.ways} == {
        "stream": 78,
        "torch DataLoader": 81,
        "an execution an epoch": 78,
    }

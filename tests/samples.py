"""A split of records as arrays in memory, to compare with."""

from __future__ import annotations

import numpy as np

from segan.data.records.format import Manifest, Samples, read_shard, to_samples


def read_samples(uri: str, manifest: Manifest, split: str) -> Samples:
    parts = [to_samples(read_shard(uri, shard), manifest) for shard in manifest.shards(split)]
    return Samples(
        ids=[sample_id for part in parts for sample_id in part.ids],
        image=np.concatenate([part.image for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
    )

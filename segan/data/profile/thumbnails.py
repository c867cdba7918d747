"""Small pictures for a page: a frame with its lesion's outline, as a data URI."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segan.data.records.format import (
    Manifest,
    parse_shard_name,
    read_shard,
    shard_index,
    shard_prefix,
    to_samples,
)
from segan.utils.html import jpeg_data_uri
from segan.utils.outline import outline_mask

SampleKey = tuple[str, str]  # split and id: an image may be in two splits under one id

OUTLINE_COLOUR = (0, 229, 255)  # sRGB; no colour of skin, hair or lesion
_QUALITY = 80


def thumbnail_data_uri(image: np.ndarray, mask: np.ndarray) -> str:
    """A JPEG as a data URI, about 10 kB for a frame of 180 x 135.

    Args:
        image: uint8 [H, W, 3].
        mask: uint8 [classes, H, W] of 0 and 1.
    """
    outlined = image.copy()
    outlined[outline_mask(np.asarray(mask.any(0)))] = OUTLINE_COLOUR
    # Without chroma subsampling, which would wash out the outline.
    return jpeg_data_uri(outlined, quality=_QUALITY, subsampling=0)


def read_thumbnails(
    uri: str, manifest: Manifest, keys: Iterable[SampleKey]
) -> dict[SampleKey, str]:
    """Pictures of some of the records at `uri`; only the shards that hold them are read."""
    ids_by_shard: dict[tuple[str, str], set[str]] = {}
    for split, sample_id in keys:
        # Not the number in the manifest: a shard that lost all its pairs is not in it.
        first = parse_shard_name(manifest.shards(split)[0].name)
        assert first is not None, "a manifest names shards"
        name = shard_prefix(split, shard_index(sample_id, first.num_shards), first.num_shards)
        ids_by_shard.setdefault((split, name), set()).add(sample_id)
    thumbnails = {}
    for (split, name), ids in ids_by_shard.items():
        shard = next(shard for shard in manifest.shards(split) if shard.prefix == name)
        table = read_shard(uri, shard)
        chosen = table.filter(pc.is_in(table["id"], pa.array(sorted(ids))))
        rows = to_samples(chosen, manifest)
        for sample_id, image, mask in zip(rows.ids, rows.image, rows.mask, strict=True):
            thumbnails[split, sample_id] = thumbnail_data_uri(image, mask)
    return thumbnails

"""Thumbnails for the data profile: frames with the outline of their mask, as data URIs."""

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
from segan.errors import StorageError
from segan.utils.html.images import jpeg_data_uri
from segan.utils.labels import class_colour
from segan.utils.outline import outline_mask

SampleKey = tuple[str, str]  # split and id; two splits may have the same id

_QUALITY = 80


def thumbnail_data_uri(image: np.ndarray, mask: np.ndarray) -> str:
    """A frame with the outlines of its masks as a JPEG data URI: about 10 kB for 180 x 135 pixels.

    Args:
        image: uint8 [H, W, 3].
        mask: uint8 [classes, H, W] of 0 and 1.
    """
    outlined = image.copy()
    for index, one in enumerate(mask != 0):
        outlined[outline_mask(one)] = class_colour(index)
    # Without chroma subsampling, which would blur the outline.
    return jpeg_data_uri(outlined, quality=_QUALITY, subsampling=0)


def read_thumbnails(
    uri: str, manifest: Manifest, keys: Iterable[SampleKey]
) -> dict[SampleKey, str]:
    """Thumbnails of some of the records at `uri`; reads only the shards that contain them."""
    ids_by_shard: dict[tuple[str, str], set[str]] = {}
    for split, sample_id in keys:
        # The manifest can have fewer shards: a shard whose pairs were all rejected is missing.
        first = parse_shard_name(manifest.shards(split)[0].name)
        if first is None:
            raise StorageError(f"{uri}: not a shard's name: {manifest.shards(split)[0].name}")
        name = shard_prefix(split, shard_index(sample_id, first.num_shards), first.num_shards)
        ids_by_shard.setdefault((split, name), set()).add(sample_id)
    thumbnails = {}
    for (split, name), ids in ids_by_shard.items():
        shard = next(shard for shard in manifest.shards(split) if shard.prefix == name)
        table = read_shard(uri, shard)
        selected = table.filter(pc.is_in(table["id"], pa.array(sorted(ids))))
        samples = to_samples(selected, manifest)
        for sample_id, image, mask in zip(samples.ids, samples.image, samples.mask, strict=True):
            thumbnails[split, sample_id] = thumbnail_data_uri(image, mask)
    return thumbnails

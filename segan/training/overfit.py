"""Training on a few images alone, to see that a network can learn them.

A network that does not reach a Jaccard near 1 on a handful of images, without augmentation, has a
mistake in its data, its losses or its learning rates, which a training on all images would show
after hours.
"""

from __future__ import annotations

from segan import storage
from segan.config import Config
from segan.data.records.format import (
    Manifest,
    Record,
    make_manifest,
    read_manifest,
    read_shard,
    shard_prefix,
    to_records,
    write_manifest,
    write_shard,
)
from segan.errors import UsageError

# No augmentation: the whole frame, resized to the crop's square in training as in validation.
NO_AUGMENTATION = (
    "augment.resize_probability=1",
    "augment.flip_horizontal=0",
    "augment.flip_vertical=0",
    "augment.rotation=0",
    "augment.zoom=1",
    "augment.brightness=0",
    "augment.contrast=0",
    "augment.saturation=0",
    "augment.hue=0",
    "evaluation.resize_mode=resize",
)
STEPS, NUM_VALIDATIONS = 200, 10


def overfit_overrides(count: int, workers: int) -> list[str]:
    """Overrides of the configuration for a training on `count` images, all of them in a step."""
    return [
        *NO_AUGMENTATION,
        f"training.batch_size={max(1, count // workers)}",
        f"training.epochs={STEPS}",
        f"training.validate_every_epochs={STEPS // NUM_VALIDATIONS}",
    ]


def write_overfit_records(config: Config, out: str, count: int) -> Config:
    """Writes records whose training and validation splits are the first `count` training images.

    Args:
        out: URI of the records to write.

    Returns:
        The configuration with these records.

    Raises:
        UsageError: the training split has fewer images.
        StorageError: the records cannot be read or written.
    """
    source = config.data.records
    manifest = read_manifest(source)
    records = _first_records(source, manifest, config.data.train, count)
    height, width, classes = manifest.height, manifest.width, manifest.classes
    splits = dict.fromkeys((config.data.train, config.data.validation))
    shards = {
        split: [write_shard(out, shard_prefix(split, 0, 1), records, height, width, classes)]
        for split in splits
    }
    geometry, names = (height, width, classes), manifest.class_names
    write_manifest(out, make_manifest(geometry, shards, [], source, names), [])
    return config.with_overrides({"data.records": storage.normalise(out)})


def _first_records(uri: str, manifest: Manifest, split: str, count: int) -> list[Record]:
    if count > manifest.num_rows(split):
        raise UsageError(
            f"--overfit {count}: split {split!r} of {uri} has {manifest.num_rows(split)} images"
        )
    records: list[Record] = []
    for shard in manifest.shards(split):
        records += to_records(
            read_shard(uri, shard), manifest.height, manifest.width, manifest.classes
        )
        if len(records) >= count:
            break
    return records[:count]

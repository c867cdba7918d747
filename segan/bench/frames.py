"""The data of the stream benchmark: synthetic records, and the same images as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from segan.data.ingest import FRAME_SIZE, ROWS_PER_SHARD
from segan.data.records.format import (
    Manifest,
    Record,
    make_manifest,
    read_shard,
    shard_prefix,
    to_samples,
    write_manifest,
    write_shard,
)
from segan.data.synthetic import generate_pair

NUM_SYNTHETIC = 100  # distinct pairs; further ones are copies under other ids


def write_records(uri: str, pairs: int) -> Manifest:
    """Writes records of so many synthetic pairs, split train, in shards of the default size."""
    width, height = FRAME_SIZE
    frames = [_synthetic_frame(index) for index in range(min(pairs, NUM_SYNTHETIC))]
    count = -(-pairs // ROWS_PER_SHARD)
    shards = []
    for index in range(count):
        rows = [
            Record(f"ISIC_{row:07d}", *frames[row % NUM_SYNTHETIC], FRAME_SIZE)
            for row in range(index, pairs, count)
        ]
        shards.append(write_shard(uri, shard_prefix("train", index, count), rows, height, width, 1))
    manifest = make_manifest(
        (height, width, 1), {"train": shards}, [], "synthetic, for a benchmark"
    )
    write_manifest(uri, manifest, [])
    return manifest


def write_image_files(uri: str, manifest: Manifest, split: str, folder: Path) -> None:
    """Writes the frames of a split as JPEG and PNG files, for the DataLoader baseline."""
    for shard in manifest.shards(split):
        frames = to_samples(read_shard(uri, shard), manifest)
        for sample_id, image, mask in zip(frames.ids, frames.image, frames.mask, strict=True):
            Image.fromarray(image).save(folder / f"{sample_id}.jpg", quality=95)
            Image.fromarray(mask[0] * 255).save(folder / f"{sample_id}.png")


class FileDataset(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Images and masks of a folder, decoded per item."""

    def __init__(self, folder: str):
        self.images = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image uint8 [H, W, 3] and mask uint8 [H, W]."""
        path = self.images[index]
        with Image.open(path) as image, Image.open(path.with_suffix(".png")) as mask:
            return np.array(image.convert("RGB")), np.array(mask)


def make_loader(
    folder: str, batch_size: int, workers: int
) -> DataLoader[tuple[np.ndarray, np.ndarray]]:
    """A DataLoader of shuffled batches, with workers that persist across epochs."""
    return DataLoader(
        FileDataset(folder),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=4,
    )


def _synthetic_frame(index: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask = generate_pair(0, index, FRAME_SIZE)
    return image, (mask > 0).astype(np.uint8)[None]

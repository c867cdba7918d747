"""Records for the stream to bring, and the same images as files for its rival."""

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

NUM_SYNTHETIC = 100  # pairs that differ; more are the same again under other names


def write_records(uri: str, pairs: int) -> Manifest:
    """Records of so many drawn pairs to train on, in shards of the usual size, at `uri`."""
    width, height = FRAME_SIZE
    drawn = [_synthetic_frame(index) for index in range(min(pairs, NUM_SYNTHETIC))]
    count = -(-pairs // ROWS_PER_SHARD)
    shards = []
    for index in range(count):
        rows = [
            Record(f"ISIC_{row:07d}", *drawn[row % NUM_SYNTHETIC], FRAME_SIZE)
            for row in range(index, pairs, count)
        ]
        place = shard_prefix("train", index, count)
        shards.append(write_shard(uri, place, rows, height, width, 1))
    manifest = make_manifest((height, width, 1), {"train": shards}, [], "drawn for a benchmark")
    write_manifest(uri, manifest, [])
    return manifest


def write_image_files(uri: str, manifest: Manifest, split: str, folder: Path) -> None:
    """The frames of a split as JPEG and PNG files, which is how a rival would have them."""
    for shard in manifest.shards(split):
        frames = to_samples(read_shard(uri, shard), manifest)
        for sample_id, image, mask in zip(frames.ids, frames.image, frames.mask, strict=True):
            Image.fromarray(image).save(folder / f"{sample_id}.jpg", quality=95)
            Image.fromarray(mask[0] * 255).save(folder / f"{sample_id}.png")


class FileDataset(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Images and masks of a folder, decoded when they are asked for."""

    def __init__(self, folder: str):
        self.images = sorted(Path(folder).glob("*.jpg"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] and [H, W]."""
        path = self.images[index]
        with Image.open(path) as image, Image.open(path.with_suffix(".png")) as mask:
            return np.array(image.convert("RGB")), np.array(mask)


def make_loader(
    folder: str, batch_size: int, workers: int
) -> DataLoader[tuple[np.ndarray, np.ndarray]]:
    """Shuffled batches of the files; its workers stay from epoch to epoch."""
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

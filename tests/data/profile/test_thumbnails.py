"""Thumbnails: outlines, and reading from records."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.profile.thumbnails import read_thumbnails, thumbnail_data_uri
from segan.data.synthetic import generate_archive
from segan.utils.labels import CLASS_COLOURS
from segan.utils.outline import outline_mask
from tests.samples import read_samples


def decode(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_outline_of_a_square() -> None:
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    rim = mask.copy()
    rim[2:5, 2:5] = False
    np.testing.assert_array_equal(outline_mask(mask), rim)


def test_outline_is_open_at_the_frame_edge() -> None:
    mask = np.zeros((4, 5), bool)
    mask[:, :3] = True
    expected = np.zeros((4, 5), bool)
    expected[:, 2] = True
    np.testing.assert_array_equal(outline_mask(mask), expected)


def test_empty_and_full_masks_have_no_outline() -> None:
    assert not outline_mask(np.zeros((3, 4), bool)).any()
    assert not outline_mask(np.ones((3, 4), bool)).any()


def test_outline_is_visible_in_the_thumbnail() -> None:
    image = np.full((40, 60, 3), (200, 160, 130), np.uint8)
    mask = np.zeros((1, 40, 60), np.uint8)
    mask[0, 10:30, 20:40] = 1
    before = image.copy()
    pixels = decode(thumbnail_data_uri(image, mask)).astype(int)
    np.testing.assert_array_equal(image, before)
    assert pixels.shape == image.shape
    rim = outline_mask(mask[0] > 0)
    assert np.abs(pixels[rim] - CLASS_COLOURS[0]).mean() < 25
    assert np.abs(pixels[:5] - image[:5]).max() < 25


def test_read_thumbnails(tmp_path: Path) -> None:
    source, out = str(tmp_path / "archive"), str(tmp_path / "records")

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(source, name), content)

    generate_archive({"train": 7, "validation": 2}, 0, write, 32)
    archive = open_archive(source)
    manifest = ingest(archive, out, IngestOptions((24, 18), rows_per_shard=2), local_executor(1))
    keys = [(pair.split, pair.id) for pair in archive.pairs]
    found = read_thumbnails(out, manifest, keys[1:])
    assert set(found) == set(keys[1:])
    for split in ("train", "validation"):
        frames = read_samples(out, manifest, split)
        for sample_id, image, mask in zip(frames.ids, frames.image, frames.mask, strict=True):
            if (split, sample_id) in found:
                assert found[split, sample_id] == thumbnail_data_uri(image, mask)

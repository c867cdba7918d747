"""Small pictures for a page: a frame with its lesion's outline, as a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from segan.data.records import Manifest, read_shard, shard_file, shard_of, shard_place, to_frames

Key = tuple[str, str]  # split and id: an image may be in two splits under one id

OUTLINE = (0, 229, 255)  # sRGB; no colour of skin, hair or lesion
_QUALITY = 80


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask, bool [H, W], that have a neighbour above, below or beside outside it.

    The frame's edge is no outline: a lesion that it cuts stays open there.
    """
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def picture(image: np.ndarray, mask: np.ndarray) -> str:
    """A JPEG as a data URI, about 10 kB for a frame of 180 x 135.

    Args:
        image: uint8 [H, W, 3].
        mask: uint8 [classes, H, W] of 0 and 1.
    """
    drawn = image.copy()
    drawn[outline(np.asarray(mask.any(0)))] = OUTLINE
    buffer = io.BytesIO()
    # Full colour resolution, or the outline would fade.
    Image.fromarray(drawn).save(buffer, "JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_pictures(uri: str, manifest: Manifest, keys: Iterable[Key]) -> dict[Key, str]:
    """Pictures of some of the records at `uri`; only the shards that hold them are read."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for split, sample_id in keys:
        # Not the number in the manifest: a shard that lost all its pairs is not in it.
        first = shard_file(manifest.shards(split)[0].name)
        assert first is not None, "a manifest names shards"
        name = shard_place(split, shard_of(sample_id, first.of), first.of)
        wanted.setdefault((split, name), set()).add(sample_id)
    pictures = {}
    for (split, name), ids in wanted.items():
        shard = next(shard for shard in manifest.shards(split) if shard.place == name)
        table = read_shard(uri, shard)
        chosen = table.filter(pc.is_in(table["id"], pa.array(sorted(ids))))
        rows = to_frames(chosen, manifest)
        for sample_id, image, mask in zip(rows.ids, rows.image, rows.mask, strict=True):
            pictures[split, sample_id] = picture(image, mask)
    return pictures

"""Records: what ingest writes and training reads, Parquet shards beside a manifest.

    <root>/records/<name>/   manifest.json  train-00000-of-00008.parquet ...  rejects.parquet

Samples fall into shards by the hash of their id, so each shard is a random sample of its split
and a batch drawn from one shard is as mixed as one drawn from all.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from segan import storage
from segan.errors import StorageError, UsageError

MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"


@dataclass(frozen=True)
class Record:
    """One sample: image uint8 [H, W, 3], mask uint8 [classes, H, W] of 0 and 1, and the size
    (width, height) in pixels that the original had."""

    id: str
    image: np.ndarray
    mask: np.ndarray
    original_size: tuple[int, int]


class Shard(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    rows: int
    bytes: int
    sha256: str
    content: str  # digest of ids and pixels, whatever the encoding


class Manifest(BaseModel):
    """What the records are; written last, so its presence says that they are whole.

    Attributes:
        height, width: pixels of every frame.
        classes: label maps of every mask.
        splits: shards of each split, in the order of their names.
        rejects: pairs of the archive that are not here, with reasons in rejects.parquet.
        fingerprint: changes when any id or pixel does.
    """

    model_config = ConfigDict(frozen=True)

    height: int
    width: int
    classes: int
    splits: dict[str, tuple[Shard, ...]]
    rejects: int
    source: str
    fingerprint: str

    def rows(self, split: str) -> int:
        return sum(shard.rows for shard in self.shards(split))

    def shards(self, split: str) -> tuple[Shard, ...]:
        if split not in self.splits:
            raise UsageError(
                f"split {split!r}: the records have {', '.join(self.splits) or 'none'}"
            )
        return self.splits[split]


@dataclass(frozen=True)
class Frames:
    """Rows of a shard as arrays: image uint8 [B, H, W, 3], mask uint8 [B, classes, H, W]."""

    ids: list[str]
    image: np.ndarray
    mask: np.ndarray


def schema(height: int, width: int, classes: int) -> pa.Schema:
    """Pixels are fixed-size binary, so a column of them is an array without a copy."""
    return pa.schema(
        {
            "id": pa.string(),
            "image": pa.binary(height * width * 3),
            "mask": pa.binary(classes * height * width),
            "original_width": pa.int32(),
            "original_height": pa.int32(),
        }
    )


def shard_of(sample_id: str, shards: int) -> int:
    """The shard, 0 to shards - 1, that a sample belongs to."""
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % shards


def shard_name(split: str, index: int, shards: int) -> str:
    return f"{split}-{index:05d}-of-{shards:05d}.parquet"


def write_shard(
    uri: str, name: str, records: Sequence[Record], height: int, width: int, classes: int
) -> Shard:
    """Writes one shard of records below `uri`, whole or not at all."""
    table = _to_table(records, schema(height, width, classes))
    sink = io.BytesIO()
    # Pixels of photographs hardly compress and masks do so very well.
    compression = dict.fromkeys(table.column_names, "none") | {"mask": "zstd"}
    pq.write_table(table, sink, compression=compression, use_dictionary=False, row_group_size=512)
    content = sink.getvalue()
    storage.write_bytes(storage.join(uri, name), content)
    return Shard(
        name=name,
        rows=len(records),
        bytes=len(content),
        sha256=storage.sha256(content),
        content=_digest(
            f"{r.id}\n".encode() + r.image.tobytes() + r.mask.tobytes() for r in records
        ),
    )


def read_shard(uri: str, shard: Shard) -> pa.Table:
    """The rows of a shard, its checksum verified.

    Raises:
        StorageError: the file is missing, or is not the one that the manifest names.
    """
    name = storage.join(uri, shard.name)
    content = storage.read_bytes(name)
    if storage.sha256(content) != shard.sha256:
        raise StorageError(
            f"{name}: {len(content)} bytes that do not match the manifest's checksum "
            f"({shard.bytes} bytes expected); ingest again"
        )
    return pq.read_table(io.BytesIO(content)).combine_chunks()


def write_manifest(
    uri: str,
    geometry: tuple[int, int, int],
    splits: dict[str, Sequence[Shard]],
    rejects: Sequence[dict[str, str]],
    source: str,
) -> Manifest:
    """Completes the records with the table of rejects and the manifest, in that order.

    Args:
        geometry: height, width, classes.
        rejects: rows of name, split, reason.
    """
    height, width, classes = geometry
    columns = pa.schema([(key, pa.string()) for key in ("name", "split", "reason")])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rejects), columns), sink)
    storage.write_bytes(storage.join(uri, REJECTS), sink.getvalue())
    parts = [f"{height}x{width}x{classes}".encode()]
    parts += [f"{s} {shard.content}".encode() for s in sorted(splits) for shard in splits[s]]
    manifest = Manifest(
        height=height,
        width=width,
        classes=classes,
        splits={split: tuple(shards) for split, shards in splits.items()},
        rejects=len(rejects),
        source=source,
        fingerprint=_digest(parts),
    )
    storage.write_json(storage.join(uri, MANIFEST), manifest.model_dump())
    return manifest


def read_manifest(uri: str) -> Manifest:
    """Raises StorageError where there are no whole records at `uri`."""
    if not uri:
        raise UsageError(
            "data.records: expected the URI of records; write them with `segan ingest`"
        )
    storage.check_access(uri)
    name = storage.join(uri, MANIFEST)
    if not storage.exists(name):
        raise StorageError(
            f"{uri}: no records here (no {MANIFEST}); write them with `segan ingest`"
        )
    try:
        return Manifest.model_validate(storage.read_json(name))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "all of it"
        raise StorageError(f"{name}: not a manifest of records ({where}: {first['msg']})") from None


def read_rejects(uri: str) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(
        io.BytesIO(storage.read_bytes(storage.join(uri, REJECTS)))
    ).to_pylist()
    return rows


def to_frames(table: pa.Table, manifest: Manifest) -> Frames:
    """Rows of records as arrays; views of the table's memory where it lies in one piece."""
    h, w = manifest.height, manifest.width
    return Frames(
        ids=table["id"].to_pylist(),
        image=_pixels(table["image"]).reshape(-1, h, w, 3),
        mask=_pixels(table["mask"]).reshape(-1, manifest.classes, h, w),
    )


def read_frames(uri: str, manifest: Manifest, split: str, rank: int = 0, ranks: int = 1) -> Frames:
    """A split's frames, or one rank's share of them: every n-th row of each shard."""
    share = slice(rank, None, ranks)
    parts = []
    for shard in manifest.shards(split):
        whole = to_frames(read_shard(uri, shard), manifest)
        # Copies, so that the shard's own memory is let go.
        parts.append(Frames(whole.ids[share], whole.image[share].copy(), whole.mask[share].copy()))
    return Frames(
        ids=[sample_id for part in parts for sample_id in part.ids],
        image=np.concatenate([part.image for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
    )


def _pixels(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    size = array.type.byte_width
    whole = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    return whole[array.offset * size : (array.offset + len(array)) * size]


def _to_table(records: Sequence[Record], columns: pa.Schema) -> pa.Table:
    return pa.table(
        {
            "id": [r.id for r in records],
            "image": pa.array([r.image.tobytes() for r in records], columns.field("image").type),
            "mask": pa.array([r.mask.tobytes() for r in records], columns.field("mask").type),
            "original_width": pa.array([r.original_size[0] for r in records], pa.int32()),
            "original_height": pa.array([r.original_size[1] for r in records], pa.int32()),
        },
        schema=columns,
    )


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()

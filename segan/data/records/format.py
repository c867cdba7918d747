"""The records that ingest writes and training reads: Parquet shards and a manifest.

    <root>/records/<name>/   manifest.json  train-00000-of-00008-1f0c...parquet ...
                             rejects.parquet  image_stats.parquet  profile.json  profile.html
                             manifests/  (earlier ones: `segan.data.records.versions`)

A sample's shard is determined by the hash of its id, so each shard is a random sample of its split.
A shard's name ends with its checksum: a changed shard is a new file, and the old one is deleted
only when no manifest names it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, model_validator

from segan import storage
from segan.data.records.shard_file import make_schema, parse_shard, pixel_array
from segan.errors import CorruptedError, StorageError, UsageError
from segan.utils.labels import MAX_CLASSES, ClassNames, class_names
from segan.utils.models import Count, FrameSide, FrozenModel

MANIFEST = "manifest.json"
REJECTS = "rejects.parquet"
_SHARD = re.compile(
    r"(?P<split>\w+)-(?P<index>\d{5,})-of-(?P<of>\d{5,})-(?P<sha>[0-9a-f]{16})\.parquet"
)


@dataclass(frozen=True)
class Record:
    """One sample.

    Attributes:
        image: uint8 [H, W, 3].
        mask: uint8 [classes, H, W] of 0 and 1.
        original_size: (width, height) of the original image in pixels.
        source_digests: SHA-256 of the image file and of the mask file, as hex; of several masks,
            that of `segan.data.records.shards.mask_digest`.
    """

    id: str
    image: np.ndarray
    mask: np.ndarray
    original_size: tuple[int, int]
    source_digests: tuple[str, str] = ("", "")


class Shard(FrozenModel):
    """A shard in the manifest.

    Attributes:
        bytes, sha256: of the file.
        content_digest: of ids and pixels, independent of the encoding.
    """

    name: str
    num_rows: Annotated[int, Field(ge=1, le=2**31 - 1)]
    bytes: Count
    sha256: str
    content_digest: str

    @property
    def prefix(self) -> str:
        """The name without the checksum, which is the same for every content."""
        return self.name.rpartition("-")[0]


class Manifest(FrozenModel):
    """The content of manifest.json; written last, so records with a manifest are complete.

    Attributes:
        height, width: of every frame in pixels.
        classes: label maps in every mask.
        splits: the shards of each split by name.
        num_inputs: pairs in the archive: rows and rejects together.
        num_rejects: pairs that are not in the records; reasons are in rejects.parquet.
        source: URI of the archive.
        fingerprint: digest of all ids and pixels, and of the names of the classes.
        class_names: in the order of the label maps; empty where they have no names of their own.
    """

    height: FrameSide
    width: FrameSide
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    splits: dict[str, tuple[Shard, ...]]
    num_inputs: Count
    num_rejects: Count
    source: str
    fingerprint: str
    class_names: ClassNames = ()

    @model_validator(mode="after")
    def _check_names(self) -> Manifest:
        class_names(self.class_names, self.classes)
        return self

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json; without the names of classes if there are none."""
        return self.model_dump(exclude_defaults=True)

    @property
    def labels(self) -> tuple[str, ...]:
        """A name for each label map, see `segan.utils.labels.class_names`."""
        return class_names(self.class_names, self.classes)

    @property
    def all_shards(self) -> list[Shard]:
        return [shard for shards in self.splits.values() for shard in shards]

    def num_rows(self, split: str) -> int:
        return sum(shard.num_rows for shard in self.shards(split))

    def shards(self, split: str) -> tuple[Shard, ...]:
        """The shards of a split; raises UsageError if there is no such split."""
        if split not in self.splits:
            raise UsageError(
                f"split {split!r}: the records have {', '.join(self.splits) or 'none'}"
            )
        return self.splits[split]


@dataclass(frozen=True)
class Samples:
    """Samples as arrays: image uint8 [B, H, W, 3], mask uint8 [B, classes, H, W] of 0 and 1."""

    ids: list[str]
    image: np.ndarray
    mask: np.ndarray


def record_schema(height: int, width: int, classes: int) -> pa.Schema:
    """The schema of a shard; pixels are fixed-size binary, which is read without a copy."""
    return make_schema(height * width * 3, classes * height * width)


def shard_index(sample_id: str, num_shards: int) -> int:
    """The shard, 0 to num_shards - 1, of a sample."""
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_shards


def shard_prefix(split: str, index: int, num_shards: int) -> str:
    """A shard's name without the checksum."""
    width = max(5, len(str(num_shards)))
    return f"{split}-{index:0{width}d}-of-{num_shards:0{width}d}"


@dataclass(frozen=True)
class ShardFile:
    """The parts of a shard's file name."""

    name: str
    split: str
    index: int
    num_shards: int
    sha256_prefix: str  # the first 16 hex digits of the file's sha256


def parse_shard_name(name: str) -> ShardFile | None:
    """The parts of a shard's file name; None if it is another file's."""
    if (match := _SHARD.fullmatch(name)) is None:
        return None
    return ShardFile(name, match["split"], int(match["index"]), int(match["of"]), match["sha"])


def write_shard(
    uri: str, prefix: str, records: Sequence[Record], height: int, width: int, classes: int
) -> Shard:
    """Writes one shard of records below `uri` atomically.

    Args:
        prefix: of `shard_prefix`; the file's name adds the checksum.
    """
    table = _to_table(records, record_schema(height, width, classes))
    sink = io.BytesIO()
    # Photographs hardly compress; masks compress well.
    compression = dict.fromkeys(table.column_names, "none") | {"mask": "zstd"}
    pq.write_table(
        table,
        sink,
        compression=compression,
        use_dictionary=False,
        write_statistics=False,  # minima and maxima of pixels are useless
        row_group_size=512,
    )
    content = sink.getvalue()
    sha = storage.sha256(content)
    name = f"{prefix}-{sha[:16]}.parquet"
    storage.write_bytes(storage.join(uri, name), content)
    return Shard(
        name=name,
        num_rows=len(records),
        bytes=len(content),
        sha256=sha,
        content_digest=_digest(
            f"{r.id}\n".encode() + r.image.tobytes() + r.mask.tobytes() for r in records
        ),
    )


def read_shard(uri: str, shard: Shard) -> pa.Table:
    """Reads the rows of a shard.

    Raises:
        StorageError: the file is missing or not a shard, or its checksum or number of rows is not
            that of the manifest.
    """
    name = storage.join(uri, shard.name)
    content = storage.read_bytes(name)
    if storage.sha256(content) != shard.sha256:
        raise StorageError(
            f"{name}: checksum mismatch: expected {shard.bytes} bytes with the manifest's "
            f"checksum, found {len(content)} bytes; run `segan ingest` again"
        )
    table = parse_shard(name, content)
    if len(table) != shard.num_rows:
        raise CorruptedError(
            f"{name}: expected {shard.num_rows} rows by the manifest, found {len(table)}"
        )
    return table


def read_existing_shard(
    uri: str, file: ShardFile, height: int, width: int, classes: int
) -> list[Record]:
    """The records of a shard of an earlier ingest.

    Returns an empty list if the file is missing, fails the checksum in its name, or has another
    frame size, number of classes or decoder version.
    """
    try:
        content = storage.read_bytes(storage.join(uri, file.name))
    except StorageError:
        return []
    if storage.sha256(content)[:16] != file.sha256_prefix:
        return []
    try:
        table = parse_shard(file.name, content)
    except CorruptedError:
        return []
    if not table.schema.equals(record_schema(height, width, classes), check_metadata=True):
        return []
    return to_records(table, height, width, classes)


def to_records(table: pa.Table, height: int, width: int, classes: int) -> list[Record]:
    """The rows of a shard as records; their pixels are views of the table."""
    samples = _to_samples(table, height, width, classes)
    rows = table.drop_columns(["image", "mask"]).to_pylist()
    return [
        Record(
            row["id"],
            image,
            mask,
            (row["original_width"], row["original_height"]),
            (row["image_sha256"], row["mask_sha256"]),
        )
        for row, image, mask in zip(rows, samples.image, samples.mask, strict=True)
    ]


def make_manifest(
    geometry: tuple[int, int, int],
    splits: Mapping[str, Sequence[Shard]],
    rejects: Sequence[dict[str, str]],
    source: str,
    names: tuple[str, ...] = (),
) -> Manifest:
    """Builds the manifest of these shards.

    Args:
        geometry: height, width, classes.
        rejects: rows of name, split, reason.
        source: URI of the archive.
        names: of the classes, if they have names.
    """
    height, width, classes = geometry
    parts = ["x".join([f"{height}x{width}x{classes}", *names]).encode()]
    parts += [f"{s} {shard.content_digest}".encode() for s in sorted(splits) for shard in splits[s]]
    return Manifest(
        height=height,
        width=width,
        classes=classes,
        splits={split: tuple(shards) for split, shards in splits.items()},
        num_inputs=sum(shard.num_rows for shards in splits.values() for shard in shards)
        + len(rejects),
        num_rejects=len(rejects),
        source=source,
        fingerprint=_digest(parts),
        class_names=names,
    )


def write_manifest(uri: str, manifest: Manifest, rejects: Sequence[dict[str, str]]) -> None:
    """Writes the table of rejects, then the manifest, which completes the records."""
    columns = pa.schema([(key, pa.string()) for key in ("name", "split", "reason")])
    write_table(uri, REJECTS, pa.Table.from_pylist(list(rejects), columns))
    storage.write_json(storage.join(uri, MANIFEST), manifest.to_json())


def write_table(uri: str, name: str, table: pa.Table) -> None:
    """Writes a Parquet file below `uri` atomically."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(storage.join(uri, name), sink.getvalue())


def read_manifest(uri: str) -> Manifest:
    """Reads the manifest; raises StorageError if there are no complete records at `uri`."""
    if not uri:
        raise UsageError(
            "data.records: expected the URI of records; write them with `segan ingest`"
        )
    storage.check_access(uri)
    name = storage.join(uri, MANIFEST)
    if not storage.exists(name):
        raise StorageError(
            f"{uri}: no records found (no {MANIFEST}); write them with `segan ingest`"
        )
    return parse_manifest(name)


def parse_manifest(name: str) -> Manifest:
    """Reads a manifest's file; raises StorageError if it is missing or not a manifest."""
    return storage.read_model(name, Manifest, "a manifest of records")


def read_rejects(uri: str) -> list[dict[str, str]]:
    name = storage.join(uri, REJECTS)
    try:
        rows = pq.read_table(io.BytesIO(storage.read_limited(name))).to_pylist()
        return TypeAdapter(list[dict[str, str]]).validate_python(rows)
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, StorageError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise CorruptedError(f"{name}: not a table of rejects ({reason})") from None


def to_samples(table: pa.Table, manifest: Manifest) -> Samples:
    """Rows of records as arrays, which are views of the table's memory if it has one chunk."""
    return _to_samples(table, manifest.height, manifest.width, manifest.classes)


def _to_samples(table: pa.Table, height: int, width: int, classes: int) -> Samples:
    found = tuple(table.schema.field(key).type.byte_width for key in ("image", "mask"))
    if found != (height * width * 3, height * width * classes):
        raise CorruptedError(
            f"a shard of the records has images of {found[0]} bytes and masks of {found[1]}; "
            f"expected frames of {width} x {height} pixels with {classes} classes; run "
            "`segan ingest` again"
        )
    return Samples(
        ids=table["id"].to_pylist(),
        image=pixel_array(table["image"]).reshape(-1, height, width, 3),
        mask=pixel_array(table["mask"]).reshape(-1, classes, height, width),
    )


def _to_table(records: Sequence[Record], columns: pa.Schema) -> pa.Table:
    return pa.table(
        {
            "id": [r.id for r in records],
            "image": pa.array([r.image.tobytes() for r in records], columns.field("image").type),
            "mask": pa.array([r.mask.tobytes() for r in records], columns.field("mask").type),
            "original_width": pa.array([r.original_size[0] for r in records], pa.int32()),
            "original_height": pa.array([r.original_size[1] for r in records], pa.int32()),
            "image_sha256": [r.source_digests[0] for r in records],
            "mask_sha256": [r.source_digests[1] for r in records],
        },
        schema=columns,
    )


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()

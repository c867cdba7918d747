"""The content of a shard's Parquet file, which is not trusted."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segan.errors import CorruptedError
from segan.utils.labels import MAX_CLASSES

DECODER_VERSION = "2"  # changes when decoding the same file gives other pixels


def make_schema(image_bytes: int, mask_bytes: int) -> pa.Schema:
    """The schema of a shard; pixels are fixed-size binary, which is read without a copy."""
    return pa.schema(
        {
            "id": pa.string(),
            "image": pa.binary(image_bytes),
            "mask": pa.binary(mask_bytes),
            "original_width": pa.int32(),
            "original_height": pa.int32(),
            "image_sha256": pa.string(),
            "mask_sha256": pa.string(),
        },
        # An ingest does not reuse rows of another decoder version.
        metadata={"decoder": DECODER_VERSION},
    )


def parse_shard(name: str, content: bytes) -> pa.Table:
    """The rows of a Parquet file; raises CorruptedError unless they are records.

    What the file's header declares is checked before a column is read, since a column of one value
    can take any amount of memory.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        schema, rows = file.schema_arrow, file.metadata.num_rows
        sizes = [schema.field(key).type.byte_width for key in ("image", "mask")]
        expected = make_schema(*sizes)
        if not schema.equals(expected):
            raise ValueError(
                f"expected the columns {_describe(expected)}; found {_describe(schema)}"
            )
        if rows * sizes[0] > len(content):  # images are stored uncompressed
            raise ValueError(f"{rows} images of {sizes[0]} bytes in a file of {len(content)} bytes")
        if sizes[1] > MAX_CLASSES * sizes[0]:
            raise ValueError(f"masks of {sizes[1]} bytes for images of {sizes[0]}")
        table = file.read().combine_chunks()
        if nulls := [key for key in table.column_names if table[key].null_count]:
            raise ValueError(f"expected a value in every row, found none in some of {nulls[0]}")
        if rows and pixel_array(table["mask"]).max() > 1:
            raise ValueError("expected masks of 0 and 1, found other values")
    except (ValueError, KeyError, AttributeError, OSError, MemoryError) as error:  # pyarrow's too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptedError(f"{name}: not a shard of records ({reason})") from None
    return table


def pixel_array(column: pa.ChunkedArray) -> np.ndarray:
    """The bytes of a column of fixed-size binary, as a view of its memory if it has one chunk."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    size = array.type.byte_width
    pixels = np.frombuffer(array.buffers()[1], dtype=np.uint8)  # buffers()[0] is the validity map
    return pixels[array.offset * size : (array.offset + len(array)) * size]


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)[:300]

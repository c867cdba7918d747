"""Safetensors files, written from and read into memory that exists already.

The library's own functions hold a file's content as bytes beside its tensors. Here a file to write
is laid out in host memory once, and each save copies the tensors to their places in it; a file to
read is streamed, each tensor to its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from segan.errors import CorruptedError, SeganError
from segan.runs.checkpoint import Checkpoint
from segan.utils.text import shorten

MAX_HEADER_BYTES = 100_000_000  # the library's own limit
_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's type and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFile:
    """The content of a file in host memory: a header, and a place for each tensor.

    Attributes:
        specs: of the tensors, by name.
    """

    def __init__(self, specs: Mapping[str, TensorSpec], pin: bool):
        """
        Args:
            pin: lock the memory, so that a GPU copies to it without the host's help.
        """
        self.specs = dict(specs)
        # The widest types first, so that every tensor is aligned.
        names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
        entries, offset = {}, 0
        for name in names:
            end = offset + specs[name].num_bytes
            entries[name] = {
                "dtype": _NAMES[specs[name].dtype],
                "shape": list(specs[name].shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self._data = torch.empty(offset, dtype=torch.uint8)
        self._is_pinned = pin and offset > 0
        if self._is_pinned:  # torch's own pinned memory is rounded up to a power of two
            torch.cuda.check_error(
                torch.cuda.cudart().cudaHostRegister(self._data.data_ptr(), offset, 0)
            )
        self._places = {
            name: self._data[slice(*entries[name]["data_offsets"])]
            .view(specs[name].dtype)
            .view(specs[name].shape)
            for name in names
        }

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies tensors of `specs` to their places, from a GPU in the order of its stream."""
        for name, place in self._places.items():
            place.copy_(tensors[name], non_blocking=True)

    def buffers(self) -> list[memoryview]:
        """Returns the file's content, without a copy."""
        return [memoryview(self._header), self._data.numpy().data]

    def close(self) -> None:
        """Unlocks the memory; it must not be filled any more."""
        if self._is_pinned:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self._data.data_ptr()))
            self._is_pinned = False


def load_tensors(
    checkpoint: Checkpoint,
    file: str,
    find_places: Callable[[Mapping[str, TensorSpec]], Mapping[str, Tensor]],
) -> None:
    """Reads a checkpoint's file into tensors; beside them, at most one tensor is in memory.

    Args:
        find_places: returns the tensor to read each of the file's tensors into.

    Raises:
        CorruptedError: the file does not match its checksum, which is known only after the last
            tensor was read, or its tensors are not those of `find_places`.
    """
    chunks, uri = checkpoint.stream(file), f"{checkpoint.uri}/{file}"
    reader = _ChunkReader(chunks)
    try:
        specs = _read_header(reader, checkpoint.files[file]["size"])
        places = find_places(specs)
        _check_specs(uri, specs, {name: TensorSpec.of(place) for name, place in places.items()})
        for name in specs:
            _read_tensor(reader, places[name])
        reader.finish()
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        for _ in chunks:  # to its end, where a wrong checksum is raised
            pass
        if isinstance(error, SeganError):
            raise
        raise CorruptedError(f"{uri}: not a safetensors file; use another checkpoint") from None


def _check_specs(
    uri: str, found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]
) -> None:
    if differing := [n for n in {**found, **expected} if found.get(n) != expected.get(n)]:
        name = min(differing)
        words = (shorten(str(word), 100) for word in (name, expected.get(name), found.get(name)))
        raise CorruptedError(
            "{}: expected {} as {}, found {}; the checkpoint is of another configuration".format(
                uri, *words
            )
        )


def _read_header(reader: _ChunkReader, file_size: int) -> dict[str, TensorSpec]:
    """The file's tensors by name, in the order of their data; ValueError or the like if invalid."""
    header_size = int.from_bytes(reader.read(8), "little")
    if header_size > MAX_HEADER_BYTES:
        raise ValueError("the header is too large")
    entries = json.loads(reader.read(header_size))
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object")
    entries.pop("__metadata__", None)
    specs, offset = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        specs[name] = TensorSpec(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
        end = offset + specs[name].num_bytes
        if min(specs[name].shape, default=0) < 0 or entry["data_offsets"] != [offset, end]:
            raise ValueError(f"{name}: offsets and shape do not match")
        offset = end
    if 8 + header_size + offset != file_size:
        raise ValueError("the tensors do not fill the file")
    return specs


@torch.no_grad()
def _read_tensor(reader: _ChunkReader, place: Tensor) -> None:
    is_direct = place.device.type == "cpu" and place.is_contiguous()
    host = place if is_direct else torch.empty(place.shape, dtype=place.dtype)
    reader.read_into(host.detach().reshape(-1).view(torch.uint8).numpy().data)
    if not is_direct:
        place.copy_(host)


class _ChunkReader:
    """Reads a stream of chunks into buffers."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._chunk = chunks, memoryview(b"")

    def read(self, size: int) -> bytes:
        content = bytearray(size)
        self.read_into(memoryview(content))
        return bytes(content)

    def read_into(self, buffer: memoryview) -> None:
        """Fills the buffer; raises ValueError if the stream ends before."""
        while buffer:
            if not self._chunk:
                self._chunk = memoryview(next(self._chunks, b""))
                if not self._chunk:
                    raise ValueError("the file is too short")
            size = min(len(buffer), len(self._chunk))
            buffer[:size], buffer = self._chunk[:size], buffer[size:]
            self._chunk = self._chunk[size:]

    def finish(self) -> None:
        """Reads the stream to its end; raises ValueError if bytes were left."""
        if self._chunk or any(self._chunks):
            raise ValueError("the file is too long")

"""Ingest beside a plain loop over the same files, with as many processes."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segan import storage
from segan.bench.measure import BenchReport, Timing, interleave
from segan.data.archive.images import decode_frame, decode_mask_frame
from segan.data.archive.reader import Archive, Pair, open_archive, read_file
from segan.data.ingest import FRAME_SIZE, IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from segan.utils import processes

ROOFLINE_PAIRS = 50  # pairs that the floor is measured on


@dataclass(frozen=True)
class PairChunk:
    """Pairs that one process of the plain loop goes through, and where it leaves them."""

    pairs: tuple[Pair, ...]
    out: str


def write_synthetic_archive(folder: str, pairs: int, short_side: int) -> str:
    """The URI of an archive with so many drawn pairs to train on."""
    uri = str(Path(folder) / "archive")

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(uri, name), content)

    generate_archive({"train": pairs}, 0, write, short_side)
    return uri


def bench_ingest(
    source: str,
    workers: int,
    repeats: int,
    on_progress: Callable[[str], object] = lambda line: None,
) -> BenchReport:
    """Times the way from an archive to records.

    The floor is the decoding of files that are in memory, at its fastest, over the cores in use.

    Args:
        source: URI of an archive.
        workers: processes of each way.
    """
    archive = open_archive(source)
    pairs, started = archive.pairs, 0
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:

        def place() -> str:
            nonlocal started
            started += 1
            (there := Path(folder) / str(started)).mkdir()
            return str(there)

        ways = {
            "plain loop": lambda: _run_baseline(archive, place(), workers),
            "segan ingest": lambda: ingest(
                archive, place(), IngestOptions(), local_executor(workers)
            ),
        }
        taken = interleave(ways, repeats, on_progress=on_progress)
    floor = _time_decoding(pairs[:ROOFLINE_PAIRS]) * len(pairs) / min(workers, os.cpu_count() or 1)
    return BenchReport(
        f"ingest of {len(pairs)} pairs by {workers} processes",
        "decoding alone, of files in memory",
        tuple(Timing(name, len(pairs), tuple(t.seconds), floor) for name, t in taken.items()),
    )


def write_chunk(chunk: PairChunk) -> int:
    """What anybody would write first: open, convert, resize, keep."""
    images, masks = [], []
    for pair in chunk.pairs:
        assert pair.mask is not None, "a record needs its mask"
        image = Image.open(io.BytesIO(read_file(pair.image))).convert("RGB")
        images.append(np.asarray(image.resize(FRAME_SIZE, Image.Resampling.BILINEAR)))
        mask = Image.open(io.BytesIO(read_file(pair.mask))).convert("L")
        masks.append(np.asarray(mask.resize(FRAME_SIZE, Image.Resampling.NEAREST)) > 127)
    np.savez(chunk.out, image=np.stack(images), mask=np.stack(masks))
    return len(images)


def _run_baseline(archive: Archive, out: str, workers: int) -> None:
    parts = [
        PairChunk(tuple(archive.pairs[n::workers]), f"{out}/{n}.npz")
        for n in range(min(workers, len(archive.pairs)))
    ]
    assert sum(processes.map_unordered(write_chunk, parts, workers)) == len(archive.pairs)


def _time_decoding(pairs: Sequence[Pair]) -> float:
    """Least seconds of a pair over a few tries."""
    files = [(read_file(pair.image), read_file(pair.mask or "")) for pair in pairs]
    tries = []
    for _ in range(3):
        began = time.perf_counter()
        for image, mask in files:
            _, original = decode_frame("image", image, FRAME_SIZE)
            decode_mask_frame("mask", mask, original, FRAME_SIZE)
        tries.append(time.perf_counter() - began)
    return min(tries) / len(files)

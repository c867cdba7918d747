"""Benchmark of ingest, against a plain loop over the same files with as many processes."""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segan import storage
from segan.bench.measure import BenchReport, Timing, interleave
from segan.data.archive.images import decode_frame, decode_mask_frame
from segan.data.archive.reader import Pair, open_archive, read_file
from segan.data.ingest import FRAME_SIZE, IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from segan.errors import UsageError
from segan.utils import processes

ROOFLINE_PAIRS = 50  # decoded to measure the roofline


def write_synthetic_archive(folder: str, pairs: int, short_side: int) -> str:
    """Writes an archive of synthetic pairs of the split train below `folder`; returns its URI."""
    uri = str(Path(folder) / "archive")

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(uri, name), content)

    generate_archive({"train": pairs}, 0, write, short_side)
    return uri


def bench_ingest(
    source: str,
    workers: int,
    repeats: int,
    on_progress: Callable[[str], object] = lambda message: None,
) -> BenchReport:
    """Times the conversion of an archive to records.

    The roofline is the fastest decoding of files in memory, divided by the cores in use.

    Args:
        source: URI of an archive.
        workers: processes of each variant.

    Raises:
        UsageError: the archive has several classes, which the baseline does not read.
    """
    archive = open_archive(source)
    if archive.classes:
        raise UsageError(
            f"{archive.uri}: expected an archive with one mask for each image, found the classes "
            f"{', '.join(archive.class_names)}"
        )
    pairs = archive.pairs
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:

        def make_folder() -> str:
            return tempfile.mkdtemp(dir=folder)

        variants = {
            "plain loop": lambda: _run_baseline(pairs, make_folder(), workers),
            "segan ingest": lambda: ingest(
                archive, make_folder(), IngestOptions(), local_executor(workers)
            ),
        }
        times = interleave(variants, repeats, on_progress=on_progress)
    roofline = _time_decoding(pairs[:ROOFLINE_PAIRS]) * len(pairs)
    roofline /= min(workers, os.cpu_count() or 1)
    return BenchReport(
        f"ingest of {len(pairs)} pairs by {workers} processes",
        "decoding only, of files in memory",
        tuple(Timing(name, len(pairs), tuple(t.seconds), roofline) for name, t in times.items()),
    )


def write_chunk(chunk: tuple[Sequence[Pair], str]) -> int:
    """Baseline: converts pairs to frames in the simplest way, into the .npz file of that path."""
    pairs, out = chunk
    images, masks = [], []
    for pair in pairs:
        image = Image.open(io.BytesIO(read_file(pair.image))).convert("RGB")
        images.append(np.asarray(image.resize(FRAME_SIZE, Image.Resampling.BILINEAR)))
        mask = Image.open(io.BytesIO(read_file(pair.mask or ""))).convert("L")
        masks.append(np.asarray(mask.resize(FRAME_SIZE, Image.Resampling.NEAREST)) > 127)
    np.savez(out, image=np.stack(images), mask=np.stack(masks))
    return len(images)


def _run_baseline(pairs: Sequence[Pair], out: str, workers: int) -> None:
    chunks = [(pairs[n::workers], f"{out}/{n}.npz") for n in range(min(workers, len(pairs)))]
    assert sum(processes.map_unordered(write_chunk, chunks, workers)) == len(pairs)


def _time_decoding(pairs: Sequence[Pair]) -> float:
    """Seconds to decode a pair: the minimum of three runs over all pairs."""
    files = [(read_file(pair.image), read_file(pair.mask or "")) for pair in pairs]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for image, mask in files:
            _, original = decode_frame("image", image, FRAME_SIZE)
            decode_mask_frame("mask", mask, original, FRAME_SIZE)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / len(files)

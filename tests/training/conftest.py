"""The records of these trainings."""

from __future__ import annotations

import pytest

from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from tests.training.helpers import FRAME, ROWS


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> str:
    """22 training images in 4 shards, 3 validation images in one."""
    folder = tmp_path_factory.mktemp("data")
    source, out = str(folder / "archive"), str(folder / "records")

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(source, name), content)

    generate_archive({"train": ROWS, "validation": 3}, 0, write, short_side=100)
    options = IngestOptions(FRAME, rows_per_shard=8)
    manifest = ingest(open_archive(source), out, options, local_executor(1))
    assert [len(manifest.shards(split)) for split in ("train", "validation")] == [4, 1]
    return out

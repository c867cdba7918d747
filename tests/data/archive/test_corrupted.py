"""A corrupted pair of an archive becomes a record, or a reject by name."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, local_executor
from segan.data.ingest import ingest as write_records
from segan.data.records.format import read_rejects
from segan.data.synthetic import generate_archive
from tests.data.archive.corruptions import (
    CORRUPTIONS,
    EITHER,
    LINK_CORRUPTIONS,
    RECORD,
    REJECT,
    Corruption,
)

SIZE = (20, 16)
PAIRS = 3
CORRUPTED_ID = "ISIC_0000001"


@pytest.fixture(scope="module")
def synthetic_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(str(folder), name), content)

    generate_archive({"train": PAIRS}, 0, write, 48)
    return folder


@pytest.fixture
def source(synthetic_archive: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(synthetic_archive, tmp_path / "source"))


def ingest(source: Path, out: str) -> tuple[int, list[dict[str, str]]]:
    """The number of records, and the rejects."""
    manifest = write_records(
        open_archive(str(source)), out, IngestOptions(SIZE, max_rejects=1.0), local_executor(1)
    )
    return sum(manifest.num_rows(split) for split in manifest.splits), read_rejects(out)


def check_corruption(source: Path, name: str, kind: Corruption) -> None:
    image = source / "ISIC-2017_Training_Data" / f"{CORRUPTED_ID}.jpg"
    mask = source / "ISIC-2017_Training_Part1_GroundTruth" / f"{CORRUPTED_ID}_segmentation.png"
    kind.apply(image, mask, np.random.default_rng(zlib.crc32(name.encode())))
    rows, rejects = ingest(source, str(source.parent / "records"))
    assert rows + len(rejects) == PAIRS + kind.extra_inputs
    assert len(rejects) <= 1 + kind.extra_inputs
    assert {RECORD: not rejects, REJECT: bool(rejects), EITHER: True}[kind.expected], rejects
    for reject in rejects:
        assert CORRUPTED_ID in reject["name"]
        assert "\n" not in reject["reason"]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_damaged_pair_is_a_record_or_a_reject(source: Path, name: str) -> None:
    check_corruption(source, name, CORRUPTIONS[name])


@pytest.mark.parametrize("name", LINK_CORRUPTIONS)
def test_an_irregular_file_is_a_reject(source: Path, name: str) -> None:
    if "may not be read" in name and os.geteuid() == 0:
        pytest.skip("root may read every file")
    check_corruption(source, name, LINK_CORRUPTIONS[name])

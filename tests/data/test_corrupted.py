"""Whatever is wrong with a pair of an archive, it becomes a record or a reject by name."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from segan import storage
from segan.data.archive import open_archive
from segan.data.ingest import Options, here
from segan.data.ingest import ingest as write_records
from segan.data.records import read_rejects
from segan.data.synthetic import draw_archive
from tests.data.corrupter import EITHER, KINDS, LINKS, RECORD, REJECT, Kind

SIZE = (20, 16)
PAIRS = 3
HURT = "ISIC_0000001"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(storage.join(str(folder), name), content)

    draw_archive({"train": PAIRS}, 0, write, 48)
    return folder


@pytest.fixture
def source(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "source"))


def ingest(source: Path, out: str) -> tuple[int, list[dict[str, str]]]:
    """How many records there are, and the rejects."""
    manifest = write_records(
        open_archive(str(source)), out, Options(SIZE, max_rejects=1.0), here(1)
    )
    return sum(manifest.rows(split) for split in manifest.splits), read_rejects(out)


def check(source: Path, name: str, kind: Kind) -> None:
    image = source / "ISIC-2017_Training_Data" / f"{HURT}.jpg"
    mask = source / "ISIC-2017_Training_Part1_GroundTruth" / f"{HURT}_segmentation.png"
    kind.damage(image, mask, np.random.default_rng(zlib.crc32(name.encode())))
    rows, rejects = ingest(source, str(source.parent / "records"))
    assert rows + len(rejects) == PAIRS + kind.more
    assert len(rejects) <= 1 + kind.more
    assert {RECORD: not rejects, REJECT: bool(rejects), EITHER: True}[kind.expected], rejects
    for reject in rejects:
        assert HURT in reject["name"]
        assert "\n" not in reject["reason"]


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_pair_is_a_record_or_a_reject(source: Path, name: str) -> None:
    check(source, name, KINDS[name])


@pytest.mark.parametrize("name", LINKS)
def test_what_is_no_plain_file_is_a_reject(source: Path, name: str) -> None:
    if "may not be read" in name and os.geteuid() == 0:
        pytest.skip("root may read every file")
    check(source, name, LINKS[name])

"""Ingest of archives with several label maps, and what their records say about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from segan import storage
from segan.data.archive.label_classes import CLASSES_FILE
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, check_output, ingest, local_executor
from segan.data.records.format import Manifest, read_manifest
from segan.data.records.shards import ShardResult, ShardTask, write_task
from segan.data.synthetic import FOLDERS, generate_archive
from segan.data.synthetic_classes import ATTRIBUTES, KINDS, LABELS, generate_classes
from segan.errors import UsageError
from tests.samples import read_samples

SIZE = (90, 68)
COUNTS = {"train": 4, "validation": 2}


def write_archive(folder: Path, kind: str, counts: dict[str, int] = COUNTS) -> str:
    def write(name: str, content: bytes) -> None:
        storage.write_bytes(f"{folder}/{name}", content)

    chosen = KINDS[kind]
    if chosen.classes:
        write(CLASSES_FILE, chosen.classes)
    generate_archive(counts, 0, write, 64, write_sample=chosen.write_sample)
    return str(folder)


def run_ingest(source: str, out: Path, classes: str = "") -> tuple[Manifest, int]:
    """The manifest, and the number of pairs that were decoded."""
    results: list[ShardResult] = []

    def execute(tasks: list[ShardTask]) -> list[ShardResult]:
        results.extend(map(write_task, tasks))
        return results

    manifest = ingest(open_archive(source, classes), str(out), IngestOptions(SIZE), execute)  # type: ignore[arg-type]
    return manifest, sum(result.num_decoded for result in results)


@pytest.fixture(scope="module")
def attributes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_archive(tmp_path_factory.mktemp("attributes"), "attributes")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_archive(tmp_path_factory.mktemp("labels"), "labels")


def test_records_have_a_map_for_each_class(attributes: str, tmp_path: Path) -> None:
    manifest, num_decoded = run_ingest(attributes, tmp_path)
    assert (manifest.classes, manifest.class_names, num_decoded) == (5, tuple(ATTRIBUTES), 6)
    assert read_manifest(str(tmp_path)) == manifest
    samples = read_samples(str(tmp_path), manifest, "train")
    assert samples.mask.shape == (4, 5, SIZE[1], SIZE[0])
    for sample_id, masks in zip(samples.ids, samples.mask, strict=True):
        _, truth = generate_classes(0, int(sample_id.removeprefix("ISIC_")), short_side=64)
        for name, mask in zip(ATTRIBUTES, masks, strict=True):
            assert mask.mean() == pytest.approx(truth[name].mean(), abs=0.02), name
    assert (samples.mask.sum(1) > 1).any(), "classes may overlap"


def test_records_of_label_images(labels: str, tmp_path: Path) -> None:
    manifest, _ = run_ingest(labels, tmp_path)
    assert (manifest.classes, manifest.class_names) == (3, LABELS)
    samples = read_samples(str(tmp_path), manifest, "train")
    assert samples.mask.any((0, 2, 3)).all()
    assert (samples.mask.sum(1) <= 1).all(), "a pixel has one label"


def test_an_ingest_again_decodes_nothing(attributes: str, tmp_path: Path) -> None:
    first, _ = run_ingest(attributes, tmp_path)
    assert run_ingest(attributes, tmp_path) == (first, 0)


def test_other_label_values_are_decoded_again(tmp_path: Path) -> None:
    """The files are the same, and what they mean is not."""
    source = write_archive(tmp_path / "archive", "labels", {"train": 2})
    first, _ = run_ingest(source, tmp_path / "records")
    swapped = 'mask: "{id}_labels.png"\nclasses: {lesion: 3, globules: 2, milia_like_cyst: 1}\n'
    Path(source, CLASSES_FILE).write_text(swapped)
    second, num_decoded = run_ingest(source, tmp_path / "records")
    assert num_decoded == 2
    assert second.fingerprint != first.fingerprint
    before, after = (
        read_samples(str(tmp_path / "records"), m, "train").mask for m in (first, second)
    )
    np.testing.assert_array_equal(after, before[:, ::-1])


def test_names_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    source = write_archive(tmp_path / "archive", "labels", {"train": 2})
    first, _ = run_ingest(source, tmp_path / "a")
    renamed = KINDS["labels"].classes.replace(b"globules", b"dots")
    Path(source, CLASSES_FILE).write_bytes(renamed)
    second, _ = run_ingest(source, tmp_path / "b")
    assert second.class_names == ("lesion", "dots", "milia_like_cyst")
    assert second.fingerprint != first.fingerprint
    digests = [[shard.content_digest for shard in m.all_shards] for m in (first, second)]
    assert digests[0] == digests[1]


def test_records_of_other_classes_are_not_replaced(labels: str, tmp_path: Path) -> None:
    manifest, _ = run_ingest(labels, tmp_path)
    with pytest.raises(UsageError) as caught:
        check_output(str(tmp_path), manifest.source, SIZE)
    assert str(caught.value) == (
        f"{tmp_path}: existing records have the classes lesion, globules, milia_like_cyst, "
        "expected lesion; use another place or --overwrite"
    )


def test_records_of_one_class_are_as_before(tmp_path: Path) -> None:
    """No new key and no new column, so that the records are those of earlier versions."""
    source = write_archive(tmp_path / "archive", "lesion", {"train": 2})
    manifest = ingest(
        open_archive(source), str(tmp_path / "records"), IngestOptions(SIZE), local_executor(1)
    )
    assert (manifest.class_names, manifest.labels) == ((), ("lesion",))
    stored = json.loads((tmp_path / "records" / "manifest.json").read_text())
    assert "class_names" not in stored
    profile = json.loads((tmp_path / "records" / "profile.json").read_text())
    assert "class_names" not in profile
    assert "classes" not in profile["splits"]["train"]
    stats = pq.read_schema(tmp_path / "records" / "image_stats.parquet")
    assert "class_fractions" not in stats.names


def test_the_profile_counts_each_class(attributes: str, tmp_path: Path) -> None:
    manifest, _ = run_ingest(attributes, tmp_path)
    profile = json.loads((tmp_path / "profile.json").read_text())
    page = (tmp_path / "profile.html").read_text()
    samples = read_samples(str(tmp_path), manifest, "train")
    for i, name in enumerate(ATTRIBUTES):
        found = profile["splits"]["train"]["classes"][name]
        fractions = samples.mask[:, i].mean((1, 2))
        assert found["num_images"] == (fractions > 0).sum()
        if found["num_images"]:
            expected = np.median(fractions[fractions > 0])
            assert found["fraction"]["median"] == pytest.approx(expected, abs=1e-4)
        assert f"{name}</th>" in page


# Synthetic archives


def test_synthetic_images_are_the_same_again() -> None:
    first, second = (generate_classes(3, 5, (96, 72)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert [*first[1]] == ["lesion", *ATTRIBUTES]
    for name, mask in first[1].items():
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, second[1][name])


def test_attributes_lie_in_the_lesion_and_change_the_image() -> None:
    present = dict.fromkeys(ATTRIBUTES, 0)
    for index in range(12):
        _, masks = generate_classes(0, index, (96, 72))
        for name in ATTRIBUTES:
            assert not (masks[name] & ~masks["lesion"]).any()
            present[name] += masks[name].any()
    assert all(0 < count < 12 for count in present.values()), present


def test_splits_have_the_folders_of_isic(tmp_path: Path) -> None:
    source = write_archive(tmp_path, "attributes", {"train": 1, "validation": 1, "test": 1})
    archive = open_archive(source)
    assert [pair.split for pair in archive.pairs] == ["test", "train", "validation"]
    assert archive.rejects == []
    assert set(FOLDERS) == {pair.split for pair in archive.pairs}

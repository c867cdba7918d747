"""Ingest, evaluation and prediction on the cluster, from the bucket and back into it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_jobs.batch.inference import map_images
from ray_jobs.batch.ingest import cluster_executor
from segan import storage
from segan.config import Config
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.records.format import read_manifest, read_rejects
from segan.evaluation.score import ScoreTask, score_pair
from segan.evaluation.select import find_candidates
from segan.inference.masks import MaskWriter, find_images
from segan.inference.pipeline import run_image_task
from segan.inference.predictor import Predictor
from segan.report.ensemble import build_ensemble
from segan.runs.run import Run
from segan.training.launch import train_local
from tests.cluster.conftest import BUCKET

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def runs(make_config: Callable[..., Config]) -> list[str]:
    """The URIs of three runs, which no test changes."""
    runs = [Run(f"{BUCKET}/jobs/run-{seed}") for seed in range(3)]
    for seed, run in enumerate(runs):
        train_local(make_config("training.epochs=1", f"training.seed={seed}"), run)
    return [run.uri for run in runs]


@pytest.fixture
def model(runs: list[str]) -> str:
    return runs[0]


def test_ingest_on_the_cluster_writes_the_same_records(
    archive: str, records: str, bucket: str
) -> None:
    out = f"{bucket}/records"
    manifest = ingest(
        open_archive(archive), out, IngestOptions(rows_per_shard=12), cluster_executor
    )
    assert manifest.fingerprint == read_manifest(records).fingerprint
    assert manifest.splits == read_manifest(records).splits


def test_one_corrupt_pair_is_rejected_by_name(archive: str, bucket: str) -> None:
    for file in storage.list_files(archive):
        content = storage.read_bytes(f"{archive}/{file.name}")
        storage.write_bytes(f"{bucket}/archive/{file.name}", content)
    bad = "ISIC-2017_Training_Data/ISIC_0000003.jpg"
    storage.write_bytes(f"{bucket}/archive/{bad}", content[:200])
    found, out = open_archive(f"{bucket}/archive"), f"{bucket}/records"
    manifest = ingest(found, out, IngestOptions(rows_per_shard=12), cluster_executor)
    (reject,) = read_rejects(out)
    assert reject["name"] == bad
    assert "damaged image" in reject["reason"]
    assert sum(manifest.num_rows(split) for split in manifest.splits) + 1 == len(found.pairs)


def test_evaluation_on_the_cluster_gives_the_scores_of_this_process(
    archive: str, model: str
) -> None:
    pairs = open_archive(archive).split("test")
    predictor = Predictor.load(model)
    expected = [score_pair(predictor, pair) for pair in pairs]
    assert sorted(map_images(ScoreTask(), pairs, model), key=lambda row: str(row["id"])) == expected


def test_an_ensemble_on_the_cluster_gives_the_scores_of_this_process(
    archive: str, bucket: str, runs: list[str]
) -> None:
    model = f"{bucket}/ensemble"
    build_ensemble(model, find_candidates(None, runs))
    pairs, predictor = open_archive(archive).split("test"), Predictor.load(model)
    expected = [score_pair(predictor, pair) for pair in pairs]
    scores = sorted(map_images(ScoreTask(), pairs, model), key=lambda row: str(row["id"]))
    assert scores == expected
    assert [len(row["members"]) for row in scores] == [3] * len(pairs)


def test_predict_on_the_cluster_writes_the_same_masks(
    archive: str, model: str, bucket: str
) -> None:
    images = find_images(f"{archive}/ISIC-2017_Test_v2_Data")
    local, remote = f"{bucket}/local", f"{bucket}/remote"
    expected = list(run_image_task(Predictor.load(model), images, MaskWriter(local)))
    rows = sorted(map_images(MaskWriter(remote), images, model), key=lambda row: str(row["id"]))
    assert rows == expected
    assert len(rows) == len(images) == 4
    for file in storage.list_files(local):
        content = storage.read_bytes(f"{remote}/{file.name}")
        assert content == storage.read_bytes(f"{local}/{file.name}")
        mask = Image.open(io.BytesIO(content))
        image = Image.open(io.BytesIO(storage.read_bytes(find_image(images, file.name))))
        assert mask.size == image.size
        assert set(np.unique(np.asarray(mask))) <= {0, 255}


def find_image(images: list[str], mask: str) -> str:
    name = mask.replace("_segmentation.png", "")
    return next(uri for uri in images if f"/{name}." in uri)


def test_real_validation_images_from_the_bucket(isic2017: Path, bucket: str) -> None:
    found = open_archive(str(isic2017))
    found.pairs = found.split("validation")
    for pair in found.pairs:
        for uri in (pair.image, str(pair.mask)):
            name = uri.removeprefix(f"{isic2017}/")
            storage.write_bytes(f"{bucket}/archive/{name}", Path(uri).read_bytes())
    copied, out = open_archive(f"{bucket}/archive"), f"{bucket}/records"
    manifest = ingest(copied, out, IngestOptions(), cluster_executor)
    assert (manifest.num_rows("validation"), manifest.num_rejects) == (150, 0)
    plain = f"{bucket}/plain"
    assert (
        manifest.fingerprint == ingest(found, plain, IngestOptions(), local_executor(1)).fingerprint
    )

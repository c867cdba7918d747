"""`segan train --local --overfit N`: a training on a few images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segan.config import load_config
from segan.data.records.format import read_manifest
from segan.errors import UsageError
from segan.training.overfit import overfit_overrides, write_overfit_records
from tests.cli.test_cli import error_message, run_cli
from tests.samples import read_samples
from tests.training.helpers import ROWS


def test_both_splits_are_the_first_images_of_the_training_split(
    records: str, tmp_path: Path
) -> None:
    config = load_config(None, [f"data.records={records}"])
    few = write_overfit_records(config, f"{tmp_path}/few", 9)  # of the first two shards
    manifest = read_manifest(few.data.records)
    train, validation = (read_samples(few.data.records, manifest, s) for s in manifest.splits)
    source = read_samples(records, read_manifest(records), "train")
    assert train.ids == validation.ids == source.ids[:9]
    assert np.array_equal(train.image, source.image[:9])
    assert np.array_equal(validation.mask, source.mask[:9])


def test_more_images_than_there_are_are_refused(records: str, tmp_path: Path) -> None:
    config = load_config(None, [f"data.records={records}"])
    with pytest.raises(UsageError, match=f"--overfit 99: split 'train' of .* has {ROWS} images"):
        write_overfit_records(config, f"{tmp_path}/few", 99)


def test_nothing_is_augmented_and_a_step_has_all_images() -> None:
    config = load_config("paper", overfit_overrides(4, workers=2))
    augment = config.augment
    assert augment.resize_probability == 1  # never a random crop
    assert {
        augment.flip_horizontal,
        augment.flip_vertical,
        augment.rotation,
        augment.brightness,
        augment.contrast,
        augment.saturation,
        augment.hue,
    } == {0}
    assert augment.zoom == 1
    assert config.training.batch_size * 2 == 4


def test_it_ends_with_the_jaccard_on_the_images_and_resumes(records: str, tmp_path: Path) -> None:
    words = ["train", f"{tmp_path}/run", "--overfit", 2, f"data.records={records}"]
    words += ["network.width=2", "augment.crop=64", "training.epochs=2", "evaluation.report=false"]
    assert "--overfit: it trains in this process; add --local" in error_message(2, *words)
    for _ in range(2):
        done = run_cli(*words, "--local", "--json")
        assert done.exit_code == 0, done.stderr
        said = f"Jaccard {done.json['jaccard']:.3f} on the 2 images trained on"
        assert done.stderr.splitlines()[-1] == said

"""Predicts real images in a bucket and scores the masks with the challenge's own scorer."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from segan import storage
from segan.cli.main import main
from segan.evaluation.metrics import SCORE_NAMES
from segan.inference.predictions import read_predictions
from segan.runs.run import Run
from tests.inference.models import save_checkpoint, small_config

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),  # raised by the scorer
]
IMAGES, TRUTH = "ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"


@pytest.fixture(scope="module")
def scorer() -> Any:
    return pytest.importorskip(
        "isic_challenge_scoring", reason="the challenge's scorer is not installed"
    )


def run_cli(*words: str) -> Any:
    """Returns the JSON that a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*words, "--local", "--json"]) == 0
    return json.loads(out.getvalue())


def test_evaluate_agrees_with_the_challenges_scorer(
    isic2017: Path, scorer: Any, bucket: str, tmp_path: Path
) -> None:
    for folder, ending in ((IMAGES, "jpg"), (TRUTH, "png")):
        for file in (isic2017 / folder).glob(f"*.{ending}"):
            storage.write_bytes(f"{bucket}/archive/{folder}/{file.name}", file.read_bytes())
    # Untrained weights: both scorers must agree on good and bad masks.
    model, masks = Run(f"{bucket}/run"), f"{bucket}/masks"
    save_checkpoint(model, small_config(), 1, 0.5, 0.45)

    rows = run_cli("predict", model.uri, f"{bucket}/archive/{IMAGES}", masks)
    found = run_cli("evaluate", model.uri, f"{bucket}/archive", "--split", "validation")

    assert len(rows) == found["num_images"] == 150
    assert [row.id for row in read_predictions(masks)] == [row["id"] for row in rows]
    assert len({row["area"] for row in rows}) > 100, "masks differ"
    for row in rows:
        content = storage.read_bytes(f"{masks}/{row['mask']}")
        (tmp_path / row["mask"]).write_bytes(content)
    theirs = scorer.SegmentationScore.from_dir(isic2017 / TRUTH, tmp_path).macro_average
    for name in SCORE_NAMES:
        assert found[name] == pytest.approx(theirs[name], abs=1e-12), name

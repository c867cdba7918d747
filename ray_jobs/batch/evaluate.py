"""The scores of a model on an archive's split, over the cluster.

ray job submit --working-dir . -- python -m ray_jobs.evaluate MODEL ARCHIVE --split test
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray_jobs.batch.inference import map_images
from segan.data.archive.reader import Pair
from segan.evaluation.score import ScoreTask


def score(
    pairs: list[Pair], model: str, threshold: float | None, tta: bool | None = None
) -> Iterator[dict[str, Any]]:
    """What `segan.evaluation.score.ScorePairs` gives for each pair, in no order."""
    return map_images(ScoreTask(), pairs, model, threshold, tta)

"""The scores of a model on an archive's split, over the cluster.

ray job submit --working-dir . -- python -m ray_jobs.evaluate MODEL ARCHIVE --split test
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from ray_jobs.each import each
from segan.data.archive import Pair
from segan.evaluation.score import score_pair
from segan.inference.predictor import Predictor


def score(pairs: list[Pair], model: str, threshold: float | None) -> Iterator[dict[str, Any]]:
    """What `segan.evaluation.score.score_pair` gives for each pair, in no order."""
    return each(_score, [dataclasses.asdict(pair) for pair in pairs], model, threshold)


def _score(predictor: Predictor, row: dict[str, Any]) -> dict[str, Any]:
    return score_pair(predictor, Pair(**row))


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))

"""The scores of a model on an archive's split, over the cluster.

ray job submit --working-dir . -- python -m ray_jobs.evaluate MODEL ARCHIVE --split test
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ray_jobs.each import each
from segan.data.archive import Pair
from segan.evaluation.score import ScorePairs


def score(
    pairs: list[Pair], model: str, threshold: float | None, flips: bool | None = None
) -> Iterator[dict[str, Any]]:
    """What `segan.evaluation.score.ScorePairs` gives for each pair, in no order."""
    return each(ScorePairs(), pairs, model, threshold, flips)


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))

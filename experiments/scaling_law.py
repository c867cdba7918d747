"""The law of the scaling study: how the validation error falls with width and epochs.

error(w, n) = floor + a w^-alpha + b n^-beta, the form of Hoffmann et al. 2022 ("Training
compute-optimal large language models"), with 1 - Jaccard as error, the width w for the size of the
network and the number of epochs n for the length of the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from segan.errors import UsageError
from segan.evaluation.bootstrap import Interval

NUM_PARAMETERS = 5
NUM_RESAMPLES = 500
# Of (floor, log a, alpha, log b, beta). A Jaccard above 0.9 is out of reach: observers who draw the
# same lesion agree less.
LOWEST = (0.1, -8.0, 0.05, -8.0, 0.05)
HIGHEST = (0.5, 2.0, 3.0, 2.0, 3.0)
STARTS = ((0.2, -1.0, 0.5, -1.0, 0.5), (0.15, -2.0, 1.0, -2.0, 1.0), (0.25, -1.0, 1.5, 0.0, 1.0))


@dataclass(frozen=True)
class Point:
    """A training: its width, its epochs and the Jaccard of its best epoch."""

    width: int
    epochs: int
    jaccard: float


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law; `floor` is the error of an infinite network after infinite training."""

    floor: float
    log_a: float
    alpha: float
    log_b: float
    beta: float

    def jaccard(self, width: np.ndarray | float, epochs: np.ndarray | float) -> np.ndarray:
        """The Jaccard that the law gives; the arguments are broadcast."""
        by_width = np.exp(self.log_a) * np.power(width, -self.alpha)
        by_epochs = np.exp(self.log_b) * np.power(epochs, -self.beta)
        value: np.ndarray = np.asarray(1 - self.floor - by_width - by_epochs)
        return value


def fit_law(points: Sequence[Point]) -> ScalingLaw:
    """The law with the least squared differences from the points.

    Raises:
        UsageError: there are not enough different points.
    """
    widths, epochs = {point.width for point in points}, {point.epochs for point in points}
    if (
        len({(p.width, p.epochs) for p in points}) <= NUM_PARAMETERS
        or min(len(widths), len(epochs)) < 3
    ):
        raise UsageError(
            f"{len(widths)} widths and {len(epochs)} numbers of epochs: a law with "
            f"{NUM_PARAMETERS} parameters needs at least 3 of each, and more combinations of them "
            "than parameters; give more --widths or --epochs"
        )
    width = np.array([point.width for point in points], float)
    epoch = np.array([point.epochs for point in points], float)
    jaccard = np.array([point.jaccard for point in points])
    return _fit(width, epoch, jaccard, STARTS)


def _fit(
    width: np.ndarray,
    epochs: np.ndarray,
    jaccard: np.ndarray,
    starts: Sequence[Sequence[float]],
) -> ScalingLaw:
    def residuals(parameters: np.ndarray) -> np.ndarray:
        difference: np.ndarray = ScalingLaw(*parameters).jaccard(width, epochs) - jaccard
        return difference

    fits = [least_squares(residuals, start, bounds=(LOWEST, HIGHEST)) for start in starts]
    return ScalingLaw(*map(float, min(fits, key=lambda fit: fit.cost).x))


def forecast(
    law: ScalingLaw, points: Sequence[Point], width: int, epochs: int, seed: int = 0
) -> Interval:
    """The Jaccard for another width and length by the law of the points, with a 95 % interval.

    The interval is a percentile bootstrap of the residuals, which are widened by the degrees of
    freedom that the fit takes. It covers how the points scatter around the law: not a wrong law,
    and not another choice of validation images.
    """
    rng = np.random.default_rng(seed)
    w = np.array([point.width for point in points], float)
    n = np.array([point.epochs for point in points], float)
    fitted = law.jaccard(w, n)
    residuals = np.array([point.jaccard for point in points]) - fitted
    residuals *= np.sqrt(len(points) / (len(points) - NUM_PARAMETERS))
    start = (law.floor, law.log_a, law.alpha, law.log_b, law.beta)
    start = tuple(np.clip(start, np.add(LOWEST, 1e-6), np.subtract(HIGHEST, 1e-6)))
    values = [
        float(
            _fit(w, n, fitted + rng.choice(residuals, len(points)), [start]).jaccard(width, epochs)
        )
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(float(law.jaccard(width, epochs)), float(low), float(high))

"""The records of the trainings' tests, for baselines too."""

from tests.training.conftest import records as records

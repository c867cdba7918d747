"""The records of the trainings' tests, for experiments too."""

from tests.training.conftest import records as records

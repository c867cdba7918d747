"""Trainings of other networks under the conditions of a SegAN run; see README.md."""

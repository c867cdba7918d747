"""Metrics and the loop's state as JSON values."""

from __future__ import annotations

import json

import pytest

from segan.training.metrics import LoopState, LossValues, StepMetrics


def test_metrics_leave_out_what_is_not_known() -> None:
    metrics = StepMetrics(critic_loss=0.5, segmentor_loss=0.25, dice_loss=0.0, step=3, epoch=1)
    assert metrics.to_dict() == {
        "critic_loss": 0.5,
        "segmentor_loss": 0.25,
        "dice_loss": 0.0,
        "step": 3,
        "epoch": 1,
    }


@pytest.mark.parametrize(
    "state",
    [
        LoopState(),
        LoopState(
            7, 2, 0.5, 0.75, 0.9, 0.8, losses=LossValues(critic_loss=0.1), loss_sums=[[[0.1, 2.0]]]
        ),
    ],
)
def test_the_loops_state_survives_json(state: LoopState) -> None:
    assert LoopState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@pytest.mark.parametrize(
    "values", [{}, {"losses": {}, "validated": 1}, {"losses": {"loss": 1.0}}, {"losses": None}]
)
def test_the_state_of_another_version_is_refused(values: dict[str, object]) -> None:
    with pytest.raises((LookupError, TypeError)):
        LoopState.from_dict(values)

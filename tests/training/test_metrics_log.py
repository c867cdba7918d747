"""What a run writes for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from segan.runs.run import Run
from segan.training.metrics_log import write_hyperparameters


def test_a_trials_point_is_in_tensorboards_hparams(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "trial"))
    point = {"optimizer.learning_rate": 0.002, "logistic.final_k": 0.3}
    write_hyperparameters(run, point, {"jaccard": 0.625})
    events = EventAccumulator(f"{run}/tensorboard").Reload()
    started = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = plugin_data_pb2.HParamsPluginData.FromString(started).session_start_info.hparams
    assert {name: value.number_value for name, value in found.items()} == point
    assert [scalar.value for scalar in events.Scalars("jaccard")] == [0.625]

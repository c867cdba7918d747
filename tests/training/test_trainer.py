"""Complete trainings in this process on a few synthetic images."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from segan import storage
from segan.config import ClusterConfig, Config, parse_config
from segan.data.records.format import read_manifest, read_shard, to_samples
from segan.data.stream.batches import local_batches
from segan.errors import NonFiniteError, StoppedError, UsageError
from segan.evaluation.metrics import confusion
from segan.inference.predictor import Predictor
from segan.runs.run import Run
from segan.training.distributed import single_process_group
from segan.training.launch import _num_threads, build_trainer, train_local
from segan.training.metrics import EpochMetrics
from segan.training.resume import resolve_resume
from segan.training.trainer import Callbacks, TrainingProgress
from tests.timing import TIMING_KEYS
from tests.training.helpers import (
    BATCH_SIZE,
    EPOCH_END_SAMPLES,
    EPOCHS,
    FRAME,
    ROWS,
    STEPS,
    configure,
    metric_lines,
    same_weights,
    scalar_steps,
)

STEP_STAGES = {"data_wait", "host_to_device", "augmentation", "critic", "segmentor"}
STAGES = STEP_STAGES | {"all_reduce", "validation"}
SAVE_STAGES = {"snapshot", "upload"}  # of the previous epoch's checkpoint
DICE_LOSS_TEXT = {"segmentor": "nan", "critic": "0."}  # it does not depend on the critic


class AbortError(Exception):
    """Aborts a training in a test."""


@pytest.fixture(scope="module")
def config(records: str) -> Config:
    return configure(records)


@dataclass
class CallbackRecorder:
    """Records the calls of a training's callbacks."""

    progress: list[TrainingProgress] = field(default_factory=list)
    metrics: list[EpochMetrics] = field(default_factory=list)

    def on_validation_end(self, metrics: EpochMetrics) -> bool:
        self.metrics.append(metrics)
        return True

    def callbacks(self) -> Callbacks:
        return Callbacks(self.progress.append, self.on_validation_end)


@pytest.fixture(scope="module")
def recorder() -> CallbackRecorder:
    return CallbackRecorder()


@pytest.fixture(scope="module")
def finished_run(
    config: Config, recorder: CallbackRecorder, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """An uninterrupted run, with its callbacks recorded."""
    run = Run(str(tmp_path_factory.mktemp("runs") / "finished"))
    train_local(config, run, recorder.callbacks())
    return run


@pytest.fixture(scope="module")
def stopped_run_folder(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(str(tmp_path_factory.mktemp("runs") / "stopped"))
    with pytest.raises(AbortError):
        train_local(config, run, stop_after_epoch(1))
    return Path(run.uri)


@pytest.fixture
def stopped_run(stopped_run_folder: Path, tmp_path: Path) -> Run:
    """A copy of a run that was aborted after the checkpoint of epoch 1."""
    return Run(str(shutil.copytree(stopped_run_folder, tmp_path / "stopped")))


def stop_at(step: int) -> Callbacks:
    def on_step_end(progress: TrainingProgress) -> None:
        if progress.samples == step * BATCH_SIZE:
            raise AbortError

    return Callbacks(on_step_end=on_step_end)


def stop_after_epoch(epoch: int) -> Callbacks:
    def on_validation_end(metrics: EpochMetrics) -> bool:
        if metrics.epoch == epoch:
            raise AbortError
        return True

    return Callbacks(on_validation_end=on_validation_end)


# The files of a run


def test_run_json_has_what_reproduces_the_run(
    finished_run: Run, config: Config, records: str
) -> None:
    found = finished_run.description()
    precision = found["config"]["performance"]["precision"]
    assert precision in ("float32", "bfloat16")  # not auto
    assert parse_config(found["config"]) == config.with_overrides(
        {"performance.precision": precision}
    )
    assert found["identity"]["fingerprint"] == read_manifest(records).fingerprint
    assert {"torch", "ray", "segan"} <= set(found["packages"])
    assert found["python"].startswith("3.")
    assert "CPU cores" in found["hardware"]


def test_metrics_have_every_step_and_epoch_once(finished_run: Run) -> None:
    steps = [line for line in finished_run.metrics() if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert [line["samples"] for line in steps] == [BATCH_SIZE * n for n in range(1, STEPS + 1)]
    epochs = [line for line in finished_run.metrics() if line["kind"] == "epoch"]
    assert {line["epoch"]: line["samples"] for line in epochs} == EPOCH_END_SAMPLES
    assert [line["samples"] for line in finished_run.metrics()] == sorted(
        line["samples"] for line in finished_run.metrics()
    )


def test_steps_follow_the_schedules(finished_run: Run) -> None:
    for line in (line for line in finished_run.metrics() if line["kind"] == "step"):
        # The rate of a step is that of the samples before it, of 66 in all.
        before = line["samples"] - BATCH_SIZE
        assert line["learning_rate"] == pytest.approx(0.001 * (1 - before / 66))
        assert line["epoch"] == before // ROWS + 1
        assert line["k"] == 1.0
        assert line["critic_learning_rate"] == line["learning_rate"]
        assert line["critic_loss"] > 0


def test_epochs_have_scores_and_times(finished_run: Run) -> None:
    for line in (line for line in finished_run.metrics() if line["kind"] == "epoch"):
        assert len(line["jaccard_curve"]) == 199
        assert line["jaccard"] == pytest.approx(max(line["jaccard_curve"]), abs=1e-6)
        assert line["jaccard_at_config_threshold"] == pytest.approx(
            line["jaccard_curve"][79], abs=1e-6
        )
        assert 0 < line["threshold"] < 1
        assert 0 <= line["saturated_fraction"] <= 1
        assert 0 <= line["wrong_saturated_fraction"] <= 1
        assert set(TIMING_KEYS) <= set(line)
        assert STAGES <= set(line["stage_seconds"]) <= STAGES | SAVE_STAGES
        assert sum(line["stage_seconds"][stage] for stage in STEP_STAGES) <= line["seconds"]
        assert 0 <= line["data_wait_fraction"] <= 1
        assert 0 <= line["run_data_wait_fraction"] <= 1


def test_the_saves_have_times_too(finished_run: Run) -> None:
    """In the line of an epoch after theirs, since an upload may take longer than an epoch."""
    epochs = [line for line in finished_run.metrics() if line["kind"] == "epoch"]
    assert not SAVE_STAGES & set(epochs[0]["stage_seconds"])
    assert {name for line in epochs[1:] for name in line["stage_seconds"]} >= SAVE_STAGES


def test_tensorboard_has_the_same_points(finished_run: Run) -> None:
    assert scalar_steps(finished_run, "epoch/jaccard") == [24, 44, 64]
    assert scalar_steps(finished_run, "epoch/stage_seconds/critic") == [24, 44, 64]
    assert scalar_steps(finished_run, "step/critic_loss") == [
        BATCH_SIZE * n for n in range(1, STEPS + 1)
    ]


def test_the_best_the_latest_and_the_one_before_are_kept(finished_run: Run) -> None:
    epochs = [line for line in finished_run.metrics() if line["kind"] == "epoch"]
    scores = {line["epoch"]: line["jaccard"] for line in epochs}
    best = max(scores, key=lambda epoch: (scores[epoch], -epoch))
    kept = {best, EPOCHS - 1, EPOCHS}
    assert {c.info.epochs for c in finished_run.checkpoints()} == kept
    assert finished_run.best_checkpoint().info.epochs == best
    assert (
        finished_run.latest_checkpoint().info.epochs,
        finished_run.latest_checkpoint().samples,
    ) == (
        EPOCHS,
        64,
    )
    folders = {
        name.split("/")[0] for name in storage.iter_names(f"{finished_run.uri}/checkpoints", "")
    }
    assert folders == {f"epoch_{epoch:05d}" for epoch in kept}


def test_the_predictor_has_the_best_weights_and_their_threshold(
    finished_run: Run, config: Config, records: str
) -> None:
    predictor, best = Predictor.load(finished_run.uri), finished_run.best_checkpoint()
    assert (predictor.frame_size, predictor.threshold) == (FRAME, best.info.metrics["threshold"])
    # Scored by hand, the validation frames have the Jaccard that the checkpoint was chosen by.
    manifest = read_manifest(records)
    (shard,) = manifest.shards("validation")
    frames = to_samples(read_shard(records, shard), manifest)
    maps = predictor.members[0](torch.tensor(frames.image)).numpy()
    scores = confusion(maps > predictor.threshold, frames.mask > 0).scores()
    assert float(scores["jaccard"].mean()) == pytest.approx(best.jaccard, abs=1e-4)


@pytest.mark.usefixtures("finished_run")
def test_callbacks_are_called_after_each_step_and_validation(recorder: CallbackRecorder) -> None:
    samples = [BATCH_SIZE * n for n in range(1, STEPS + 1)]
    assert sorted({status.samples for status in recorder.progress}) == samples
    assert {(s.total_epochs, s.total_samples) for s in recorder.progress} == {
        (EPOCHS, STEPS * BATCH_SIZE)
    }
    assert recorder.progress[0].jaccard is None
    last, metrics = recorder.progress[-1], recorder.metrics[-1]
    assert last.jaccard == metrics.jaccard
    assert last.saturated_fraction == metrics.saturated_fraction
    assert last.wrong_saturated_fraction == metrics.wrong_saturated_fraction
    assert [metrics.epoch for metrics in recorder.metrics] == [1, 2, 3]


# Repeating and resuming


def test_the_same_seed_gives_the_same_weights(
    finished_run: Run, config: Config, tmp_path: Path
) -> None:
    again = Run(str(tmp_path / "again"))
    train_local(config, again)
    assert same_weights(finished_run, again)
    assert metric_lines(finished_run) == metric_lines(again)


def test_a_profiled_run_has_a_trace_and_the_same_weights(
    finished_run: Run, config: Config, tmp_path: Path
) -> None:
    """Steps 5 and 6 are traced, and the validation at the end of step 6."""
    profiled = Run(str(tmp_path / "profiled"))
    train_local(config, profiled, num_profiled_steps=2)
    assert same_weights(finished_run, profiled)
    assert metric_lines(finished_run) == metric_lines(profiled)
    (trace,) = storage.list_files(f"{profiled.uri}/profile")
    assert trace.name == "step_0000006.json.gz"
    content = storage.read_bytes(f"{profiled.uri}/profile/{trace.name}")
    events = json.loads(gzip.decompress(content))["traceEvents"]
    stages = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    counts = {name: stages.count(name) for name in ("critic", "segmentor", "validation")}
    assert counts == {"critic": 2, "segmentor": 4, "validation": 1}


def test_another_seed_gives_other_weights(finished_run: Run, records: str, tmp_path: Path) -> None:
    other = Run(str(tmp_path / "other"))
    train_local(configure(records, training={"seed": 1, "epochs": 1}), other)
    assert not same_weights(finished_run, other)


def test_a_run_aborted_after_an_epoch_resumes_exactly(
    stopped_run: Run, finished_run: Run, config: Config
) -> None:
    assert resolve_resume(config, stopped_run).spec.start == EPOCH_END_SAMPLES[1]
    train_local(config, stopped_run)
    assert same_weights(finished_run, stopped_run)
    assert metric_lines(finished_run) == metric_lines(stopped_run)
    assert scalar_steps(stopped_run, "epoch/jaccard") == [24, 44, 64]


@pytest.mark.parametrize(
    ("step", "kept"),
    # Epoch 1 is saved after 6 steps.
    [(3, 0), (9, 24)],
)
def test_a_run_aborted_within_an_epoch_repeats_it(
    step: int, kept: int, finished_run: Run, config: Config, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    with pytest.raises(AbortError):
        train_local(config, run, stop_at(step))
    assert resolve_resume(config, run).spec.start == kept
    train_local(config, run)
    assert same_weights(finished_run, run)
    assert metric_lines(finished_run) == metric_lines(run)


def test_a_pruned_run_keeps_its_checkpoint_and_can_be_resumed(
    finished_run: Run, config: Config, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    train_local(config, run, Callbacks(on_validation_end=lambda metrics: metrics.epoch < 2))
    assert run.latest_checkpoint().info.epochs == 2
    assert metric_lines(run) == [
        line for line in metric_lines(finished_run) if line["samples"] <= EPOCH_END_SAMPLES[2]
    ]
    train_local(config, run)
    assert same_weights(finished_run, run)
    assert metric_lines(run) == metric_lines(finished_run)


def test_a_row_is_augmented_by_its_own_epoch(
    finished_run: Run, config: Config, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    resume_point = resolve_resume(config, run)
    batches = list(local_batches(resume_point.spec))
    assert [b.epochs for b in batches[4:7]] == [[0] * 4, [0, 0, 1, 1], [1] * 4]
    batches[5] = dataclasses.replace(batches[5], epochs=[0] * 4)
    with single_process_group():
        build_trainer(config, run, resume_point, Callbacks()).train(batches)
    assert not same_weights(finished_run, run)


def test_a_finished_run_has_nothing_left_to_do(finished_run: Run, config: Config) -> None:
    before, recorder = finished_run.metrics(), CallbackRecorder()
    train_local(config, finished_run, recorder.callbacks())
    assert recorder == CallbackRecorder()
    assert finished_run.metrics() == before


def test_the_last_validation_is_made_up_for(config: Config, tmp_path: Path) -> None:
    """Two workers find 6 of 66 rows, less than a step, behind a checkpoint that one has saved."""
    run = Run(str(tmp_path / "run"))
    seen: list[int] = []
    callbacks = Callbacks(
        on_step_end=lambda progress: seen.append(progress.samples),
        should_stop=lambda: bool(seen) and seen[-1] >= 14 * BATCH_SIZE,
    )
    with pytest.raises(StoppedError):
        train_local(config, run, callbacks)
    resume_point = resolve_resume(config, run)
    assert (resume_point.spec.start, resume_point.is_finished) == (60, False)
    two_workers = resume_point.with_world_size(2)
    assert two_workers.spec.is_exhausted
    assert not two_workers.is_finished
    with single_process_group():
        build_trainer(config, run, two_workers, Callbacks()).train(iter(()))
    latest = run.latest_checkpoint()
    assert latest is not None
    assert (latest.name, latest.samples) == ("epoch_00003", 60)
    epochs = [line for line in run.metrics() if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert latest.jaccard == epochs[-1]["jaccard"]
    assert resolve_resume(config, run).with_world_size(2).is_finished


def test_epochs_between_validations_save_nothing(records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    config = configure(records, training={"validate_every_epochs": 2})
    with pytest.raises(AbortError):
        train_local(config, run, stop_at(8))  # in epoch 2, with no checkpoint behind it
    assert run.latest_checkpoint() is None
    train_local(config, run)
    epochs = [line for line in run.metrics() if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3]
    assert ["jaccard" in line for line in epochs] == [False, True, True]  # the last one always


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"seed": 1}}, r"training\.seed is 0, expected 1"),
        ({"training": {"epochs": 9}}, r"training\.epochs is 3, expected 9"),
        ({"loss": {"dice_weight": 1.0}}, r"loss\.dice_weight is 0\.0, expected 1\.0"),
    ],
)
def test_a_run_is_not_resumed_with_another_configuration(
    sections: dict[str, dict[str, Any]], message: str, finished_run: Run, records: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_local(configure(records, **sections), finished_run)


def test_the_resources_of_a_run_may_change(finished_run: Run, records: str) -> None:
    train_local(configure(records, cluster={"cpus_per_worker": 2}), finished_run)


# Errors


@pytest.mark.parametrize("network", ["segmentor", "critic"])
def test_a_loss_that_is_not_finite_stops_the_run(
    network: str, config: Config, tmp_path: Path
) -> None:
    run = Run(str(tmp_path / "run"))
    resume_point = resolve_resume(config, run)
    batches = list(local_batches(resume_point.spec))
    with single_process_group():
        trainer = build_trainer(config, run, resume_point, Callbacks())
        with torch.no_grad():
            next(getattr(trainer.model, network).parameters()).fill_(torch.nan)
        with pytest.raises(NonFiniteError) as caught:
            trainer.train(batches)
    message = str(caught.value)
    assert message.startswith(f"{run}: a loss or gradient of critic and segmentor at step 1 is not")
    losses = f"critic_loss nan, segmentor_loss nan, dice_loss {DICE_LOSS_TEXT[network]}"
    assert f"rank 0 ({losses}" in message
    assert f"with the images {', '.join(batches[0].ids)};" in message
    assert run.checkpoints() == []


@pytest.mark.parametrize("log_every_steps", [1, 100])
@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_a_step_that_is_not_finite_changes_no_weight(
    where: str, log_every_steps: int, records: str, tmp_path: Path
) -> None:
    """After step 7 a weight or gradient of S is made infinite, so step 8 is not finite."""
    run = Run(str(tmp_path / "run"))
    config = configure(records, training={"log_every_steps": log_every_steps})
    resume_point = resolve_resume(config, run)
    before: list[dict[str, torch.Tensor]] = []

    def everything() -> dict[str, torch.Tensor]:
        model = trainer.model
        moments = {
            f"{optimizer}.{i}.{key}": value.clone()
            for optimizer in ("segmentor_optimizer", "critic_optimizer")
            for i, state in getattr(model, optimizer).state_dict()["state"].items()
            for key, value in state.items()
        }
        networks = ("segmentor", "critic")
        named = {f"{n}.{k}": p for n in networks for k, p in getattr(model, n).named_parameters()}
        return {name: parameter.detach().clone() for name, parameter in named.items()} | moments

    def spoil(progress: TrainingProgress) -> None:
        if progress.samples == 7 * BATCH_SIZE and not before:
            first = next(trainer.model.segmentor.parameters())
            if where == "weight":
                with torch.no_grad():
                    first.fill_(torch.inf)
            else:
                first.register_hook(lambda gradient: gradient * torch.inf)
            before.append(everything())

    with single_process_group():
        trainer = build_trainer(config, run, resume_point, Callbacks(on_step_end=spoil))
        of = "critic and segmentor" if where == "weight" else "segmentor"
        with pytest.raises(NonFiniteError, match=f"gradient of {of} at step 8 is not finite"):
            trainer.train(local_batches(resume_point.spec))
        after = everything()
    (then,) = before
    assert then.keys() == after.keys()
    changed = {name.split(".")[0] for name in then if not torch.equal(then[name], after[name])}
    # C is updated first, and if its gradients are finite, the update happens.
    assert changed == (set() if where == "weight" else {"critic", "critic_optimizer"})
    assert {int(v) for name, v in after.items() if name.endswith(".step")} <= {7, 8}
    assert [c.samples for c in run.checkpoints()] == [EPOCH_END_SAMPLES[1]]  # the last good one


def test_a_stopped_run_leaves_no_thread_behind(config: Config, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(AbortError):
        train_local(config, Run(str(tmp_path / "run")), stop_at(1))
    # TensorBoard's thread would write to a deleted folder.
    assert [type(thread) for thread in threading.enumerate() if thread not in before] == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"augment": {"crop": 136}}, "augment.crop 136: the records' frames are 180 x 135"),
        ({"network": {"classes": 2}}, "network.classes 2: the records' masks have 1"),
        ({"training": {"batch_size": 23}}, "needs 23 images per step, but split 'train' has 22"),
        ({"data": {"validation": "dev"}}, "split 'dev': the records have train, validation"),
        ({"data": {"records": ""}}, "data.records: expected the URI of records"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(
    sections: dict[str, dict[str, Any]], message: str, records: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        train_local(configure(records, **sections), Run(str(tmp_path / "run")))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_batches_in_another_order_are_refused(config: Config, tmp_path: Path) -> None:
    resume_point = resolve_resume(config, Run(str(tmp_path / "run")))
    with single_process_group():
        trainer = build_trainer(config, Run(str(tmp_path / "run")), resume_point, Callbacks())
        batches = list(local_batches(resume_point.spec))
        with pytest.raises(AssertionError, match="expected row 4, found 8"):
            trainer.train([batches[0], batches[2]])


def test_trainings_that_share_a_node_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials with a thread per core each are four times slower than with half as many."""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    config = Config()
    assert [_num_threads(config, runs) for runs in (1, 2, 3, 9)] == [4, 2, 1, 1]
    fixed = config.model_copy(update={"cluster": ClusterConfig(threads_per_worker=5)})
    assert _num_threads(fixed, 2) == 5

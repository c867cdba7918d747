"""Warm starts: `training.init` begins a run from a model's weights."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from segan import storage
from segan.config import Config
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.synthetic import generate_archive
from segan.errors import CorruptedError, UsageError
from segan.inference.weights import halve_weights
from segan.networks.critic import build_critic
from segan.networks.segmentor import build_segmentor
from segan.runs.checkpoint import CRITIC_FILE, SEGMENTOR_FILE, Checkpoint, CheckpointInfo
from segan.runs.run import Run
from segan.runs.warm_start import find_initial_weights
from segan.training.distributed import single_process_group
from segan.training.launch import train_local
from segan.training.resume import resolve_resume
from segan.training.step import SegAN
from segan.training.trainer import Callbacks, TrainingProgress
from segan.training.warm_start import load_initial_weights
from tests.inference.models import save_weights, small_config
from tests.training.helpers import configure, load_weights

# A rate at which a run keeps its first weights, but for rounding.
FROZEN: dict[str, dict[str, Any]] = {
    "optimizer": {"learning_rate": 1e-12, "weight_clip": None},
    "training": {"epochs": 1},
}
WARM_RUN = "warm"


@pytest.fixture(scope="module")
def trained(records: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run whose weights others begin from."""
    run = Run(str(tmp_path_factory.mktemp("runs") / "trained"))
    train_local(configure(records, training={"epochs": 1, "seed": 5}), run)
    return run


@pytest.fixture(scope="module")
def other_records(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Other images, at another frame size."""
    folder = tmp_path_factory.mktemp("other")
    source, out = str(folder / "archive"), str(folder / "records")
    generate_archive(
        {"train": 8, "validation": 2},
        9,
        lambda name, content: storage.write_bytes(storage.join(source, name), content),
        short_side=80,
    )
    ingest(open_archive(source), out, IngestOptions((96, 72)), local_executor(1))
    return out


def warm(records: str, init: Run | str, **sections: dict[str, Any]) -> Config:
    values = {key: dict(FROZEN[key]) for key in FROZEN}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    values["training"]["init"] = str(init)
    return configure(records, **values)


def best(run: Run) -> Checkpoint:
    found = run.best_checkpoint()
    assert found is not None
    return found


def assert_weights_of(run: Run, source: Checkpoint, *files: str) -> None:
    """Whether the run, trained at a rate of almost 0, still has the source's parameters."""
    for file in files:
        found, expected = load_weights(run, file), load(source.read(f"{file}.safetensors"))
        names = [n for n in expected if not n.endswith(("running_mean", "running_var"))]
        names = [n for n in names if "num_batches" not in n and n != "logistic.k"]
        assert len(names) > 20
        for name in names:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-8)


def test_a_run_begins_from_both_networks_on_other_records(
    trained: Run, other_records: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path / WARM_RUN))
    with caplog.at_level(logging.INFO, "segan"):
        train_local(warm(other_records, trained), run)
    assert_weights_of(run, best(trained), "segmentor", "critic")
    (line,) = [m for m in caplog.messages if "training.init" in m]
    sha256 = best(trained).entry(SEGMENTOR_FILE)["sha256"]
    assert f"takes the segmentor (sha256 {sha256[:12]}) and the critic of epoch_00001" in line
    assert line.endswith("begins anew: optimizers and schedules")
    identity = run.description()["identity"]
    assert identity["training.init"] == trained.uri
    assert identity["init.segmentor_sha256"] == sha256
    assert identity["init.critic_sha256"] == best(trained).entry(CRITIC_FILE)["sha256"]


def test_an_ema_begins_as_the_segmentor(trained: Run, records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / WARM_RUN))
    train_local(warm(records, trained, training={"ema_decay": 0.9}), run)
    assert_weights_of(run, best(trained), "segmentor")


# Other classes, and models of other kinds


def build_warm_model(config: Config, initial: Any) -> SegAN:
    with single_process_group():
        model = SegAN(config, torch.device("cpu"))
        load_initial_weights(model, initial)
    return model


def test_with_other_classes_the_last_layer_begins_anew(trained: Run, records: str) -> None:
    config = warm(records, trained, network={"classes": 2})
    initial = find_initial_weights(config)
    assert initial is not None
    model = build_warm_model(config, initial)
    sources = [load(best(trained).read(file)) for file in (SEGMENTOR_FILE, CRITIC_FILE)]
    fresh = [build_segmentor(config.network, 0), build_critic(config.network, 1)]
    anew: set[str] = set()
    for network, source, untrained in zip(
        (model.segmentor, model.critic), sources, fresh, strict=True
    ):
        for name, value in network.state_dict().items():
            if value.shape == source[name].shape and not name.startswith(("out.", "blocks.0.")):
                assert torch.equal(value, source[name]), name
            else:
                assert torch.equal(value, untrained.state_dict()[name]), name
                anew.add(name.partition(".")[0])
    assert anew == {"out", "blocks"}
    assert "last layer (other classes)" in initial.describe()
    assert "critic's first layer (other classes)" in initial.describe()


@pytest.mark.parametrize(
    ("labels", "is_taken"),
    [((), True), (("a", "b"), True), (("b", "a"), False), (("a", "c"), False)],
)
def test_classes_are_the_same_by_name_and_order(
    labels: tuple[str, ...], is_taken: bool, tmp_path: Path
) -> None:
    """Another class of the same place is another class."""
    config = small_config(network={"width": 2, "classes": 2})
    info = CheckpointInfo(
        epochs=1, samples=1, metrics={}, class_names=("a", "b"), config=config.model_dump()
    )
    uri = save_weights(Run(f"{tmp_path}/run"), config, info)
    initial = find_initial_weights(config.with_overrides({"training.init": uri}), labels)
    assert initial is not None
    assert initial.same_classes is is_taken


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"loss": {"critic": "none", "dice_weight": 1}}, "the critic (not used)"),
        ({"loss": {"critic": "scalar"}}, "the critic (of another kind in the model)"),
        ({"network": {"spectral_norm": True}}, "the critic (of another kind in the model)"),
    ],
)
def test_a_critic_that_does_not_fit_begins_anew(
    overrides: dict[str, Any], reason: str, trained: Run, records: str
) -> None:
    config = warm(records, trained, **overrides)
    initial = find_initial_weights(config)
    assert initial is not None
    assert reason in initial.describe()
    model = build_warm_model(config, initial)
    scalar = config.loss.critic == "scalar"
    for name, value in build_critic(config.network, 1, scalar).state_dict().items():
        assert torch.equal(model.critic.state_dict()[name], value), name


def test_a_model_of_half_precision_without_a_critic(
    trained: Run, records: str, tmp_path: Path
) -> None:
    source = best(trained)
    weights = load(source.read(SEGMENTOR_FILE))
    info = CheckpointInfo(**{**vars(source.info), "progress": None})
    half = Run(str(tmp_path / "half"))
    half.save_checkpoint("epoch_00001", {SEGMENTOR_FILE: halve_weights(weights)}, info)
    config = warm(records, half)
    initial = find_initial_weights(config)
    assert initial is not None
    assert "the critic (not in the model)" in initial.describe()
    assert initial.identity()["init.critic_sha256"] is None
    model = build_warm_model(config, initial)
    for name, value in model.segmentor.state_dict().items():
        assert value.dtype == weights[name].dtype
        torch.testing.assert_close(value, weights[name], rtol=5e-4, atol=1e-7)


def test_a_network_of_another_shape_is_refused(trained: Run, records: str, tmp_path: Path) -> None:
    config = warm(records, trained, network={"width": 3, "residual_expansion": 1.0})
    with pytest.raises(
        UsageError,
        match=r"training\.init=.*: network\.width is 2, expected 3, "
        r"network\.residual_expansion is 2\.0, expected 1\.0; its weights fit",
    ):
        train_local(config, Run(str(tmp_path / WARM_RUN)))
    assert storage.list_files(str(tmp_path / WARM_RUN)) == []


def test_how_the_model_itself_began_is_no_matter(trained: Run, records: str) -> None:
    network = {"width": 2, "segmentor_init": "uniform"}
    assert find_initial_weights(warm(records, trained, network=network))


def test_weights_of_another_shape_than_they_say_are_refused(
    trained: Run, records: str, tmp_path: Path
) -> None:
    source = best(trained)
    weights = load(source.read(SEGMENTOR_FILE))
    weights["down.0.0.weight"] = torch.zeros(3, 3, 7, 7)
    wrong = Run(str(tmp_path / "wrong"))
    wrong.save_checkpoint("epoch_00001", {SEGMENTOR_FILE: save(weights)}, source.info)
    with pytest.raises(CorruptedError, match=r"down\.0\.0\.weight: expected .* and found"):
        train_local(warm(records, wrong), Run(str(tmp_path / WARM_RUN)))


# Going on


class AbortError(Exception):
    """Aborts a training in a test."""


def abort_in_first_step() -> Callbacks:
    def on_step_end(progress: TrainingProgress) -> None:
        raise AbortError

    return Callbacks(on_step_end=on_step_end)


def test_a_run_goes_on_without_the_model_and_not_with_another(
    trained: Run, records: str, tmp_path: Path
) -> None:
    copy = Run(str(shutil.copytree(trained.uri, tmp_path / "copy")))
    run, config = Run(str(tmp_path / WARM_RUN)), warm(records, copy, training={"epochs": 2})
    stop = Callbacks(should_stop=lambda: True)
    with pytest.raises(Exception, match="stopped after step"):
        train_local(config, run, stop)
    shutil.rmtree(copy.uri)
    for init in (trained.uri, ""):
        with pytest.raises(UsageError, match=r"training\.init is '.*copy', expected '"):
            train_local(warm(records, init, training={"epochs": 2}), run)
    train_local(config, run)
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.info.epochs == 2


def test_a_run_without_a_checkpoint_begins_again_from_the_same_weights_only(
    trained: Run, records: str, tmp_path: Path
) -> None:
    copy = Run(str(shutil.copytree(trained.uri, tmp_path / "copy")))
    run, config = Run(str(tmp_path / WARM_RUN)), warm(records, copy)
    with pytest.raises(AbortError):
        train_local(config, run, abort_in_first_step())
    assert resolve_resume(config, run).initial_weights is not None
    manifest = Path(best(copy).uri) / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][SEGMENTOR_FILE]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"weights of training\.init=.*copy have changed since"):
        train_local(config, run)

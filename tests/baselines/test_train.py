"""A baseline trains as SegAN does: it resumes bit by bit, and its table has its own scores."""

from __future__ import annotations

import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.compare import app as compare_app
from baselines.compare import make_rows, score_runs
from baselines.networks import Network
from baselines.probabilities import read_probabilities
from baselines.train import Match, app, train_baseline, width_of_time
from segan import storage
from segan.cli.main import main
from segan.config import Config
from segan.errors import CorruptedError, NotFoundError, StoppedError, UsageError
from segan.runs.run import Run
from segan.training.distributed import single_process_group
from segan.training.launch import train_local
from segan.training.trainer import Callbacks, TrainingProgress
from tests.training.helpers import BATCH_SIZE, configure, metric_lines, same_weights

needs_monai = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None,
    reason="MONAI is not installed: baselines/requirements.txt",
)


def configure_baseline(records: str, seed: int = 0) -> Config:
    return configure(
        records,
        network={"width": 1},
        training={"ema_decay": 0.5, "seed": seed},
        evaluation={"tta": True},
    )


def train_to(step: int, config: Config, run: Run, network: Network) -> None:
    seen: list[int] = []

    def on_step_end(progress: TrainingProgress) -> None:
        seen.append(progress.samples)

    callbacks = Callbacks(
        on_step_end=on_step_end, should_stop=lambda: seen[-1] >= step * BATCH_SIZE
    )
    with pytest.raises(StoppedError):
        train_baseline(config, run, network, callbacks=callbacks)


@pytest.fixture(scope="module")
def dynunet(records: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was not stopped."""
    run = Run(str(tmp_path_factory.mktemp("runs") / "dynunet"))
    train_baseline(configure_baseline(records), run, Network.DYNUNET)
    return run


def find_maps(run: Run, tta: bool) -> np.ndarray:
    best = run.best_checkpoint()
    assert best
    return read_probabilities(run, best, tta)


@needs_monai
def test_a_stopped_run_ends_as_one_that_was_not(dynunet: Run, records: str, tmp_path: Path) -> None:
    run, config = Run(str(tmp_path / "run")), configure_baseline(records)
    for step in (2, 8):  # in the first epoch and in the second
        train_to(step, config, run, Network.DYNUNET)
        with pytest.raises(NotFoundError, match="end first"):
            read_probabilities(run, run.checkpoints()[0], tta=False)
    train_baseline(config, run, Network.DYNUNET)
    assert same_weights(run, dynunet)
    assert metric_lines(run) == metric_lines(dynunet)
    for tta in (False, True):
        assert np.array_equal(find_maps(run, tta), find_maps(dynunet, tta))


@needs_monai
def test_the_learning_rate_falls_linearly_and_the_loss_falls(dynunet: Run) -> None:
    steps = [line for line in dynunet.metrics() if line["kind"] == "step"]
    assert [line["learning_rate"] for line in steps] == pytest.approx(
        [0.001 * (1 - (line["samples"] - BATCH_SIZE) / 66) for line in steps]
    )
    losses = [line["segmentor_loss"] + line["dice_loss"] for line in steps]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert all(line["critic_loss"] == 0 for line in steps)


@needs_monai
def test_the_maps_have_the_score_of_the_best_epoch(dynunet: Run, records: str) -> None:
    best = dynunet.best_checkpoint()
    assert best
    (scored,) = score_runs([dynunet.uri], "", tta=True)
    assert scored.jaccard == pytest.approx(best.jaccard)
    assert scored.scores.threshold == best.threshold
    assert not np.array_equal(find_maps(dynunet, True), find_maps(dynunet, False))


@needs_monai
def test_the_table_has_segan_and_baselines_side_by_side(
    dynunet: Run, records: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segan, other = Run(str(tmp_path / "segan")), Run(str(tmp_path / "segresnet"))
    train_local(configure_baseline(records), segan)
    train_baseline(configure_baseline(records), other, Network.SEGRESNET)
    runs = [segan, dynunet, other]
    assert main([*(run.uri for run in runs), "--tta"], compare_app) == 0
    found = capsys.readouterr()
    header, _, *rows = (
        [cell.strip() for cell in line.split("|")] for line in found.out.split("\n")
    )
    table = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    networks = [row["network"] for row in table]
    assert networks[0] == "SegAN, w = 1"
    assert [name.split(",")[0] for name in networks[1:]] == ["dynunet", "segresnet"]
    for row, run in zip(table, runs, strict=True):
        best = run.best_checkpoint()
        assert best
        assert row["mean"] == row["Jaccard of each"] == f"{best.jaccard:.3f}"
        assert (row["epochs"], row["seeds"]) == ("3 of 3", "0")
        assert int(row["peak MiB"]) > 100
    low, high = map(float, table[1]["95 % over images"].split(" to "))
    assert low <= float(table[1]["minus SegAN, w = 1"]) <= high
    assert "note:" not in found.err


@needs_monai
def test_a_run_goes_on_with_its_own_network_only(dynunet: Run, records: str) -> None:
    config = configure_baseline(records)
    with pytest.raises(UsageError, match=r"baseline\.network is 'dynunet', expected 'segresnet'"):
        train_baseline(config, dynunet, Network.SEGRESNET)
    with pytest.raises(UsageError, match=r"baseline\.match is 'parameters', expected 'time'"):
        train_baseline(config, dynunet, Network.DYNUNET, Match.TIME)
    with pytest.raises(UsageError, match="unknown key baseline"):
        train_local(config, dynunet)


@needs_monai
def test_a_damaged_file_of_maps_is_an_error(dynunet: Run, tmp_path: Path) -> None:
    best = dynunet.best_checkpoint()
    assert best
    copy = Run(str(tmp_path / "copy"))
    (name,) = (Path(dynunet.uri) / "probabilities").iterdir()
    uri = storage.join(copy.uri, "probabilities", name.name)
    storage.write_bytes(uri, name.read_bytes()[:-1])
    with pytest.raises(CorruptedError, match="not an array"):
        read_probabilities(copy, best, tta=False)
    buffer = io.BytesIO()
    np.save(buffer, np.array([object()]), allow_pickle=True)
    storage.write_bytes(uri, buffer.getvalue())
    with pytest.raises(CorruptedError, match="not an array"):
        read_probabilities(copy, best, tta=False)


@needs_monai
def test_the_width_of_equal_step_time(records: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The slower SegAN is, the wider is the baseline; of w = 8, a width of 4 is too small."""
    config = configure_baseline(records)
    large = configure(records, network={"width": 8})
    with single_process_group():
        width = width_of_time(Network.SEGRESNET, large, config, torch.device("cpu"))
    ratios = {
        int(width): float(ratio)
        for width, ratio in re.findall(
            r"segresnet of width (\d+): a step takes ([\d.]+) times", capsys.readouterr().err
        )
    }
    assert width in ratios
    assert ratios[4] < 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.init=isic2017"], "training.init: a baseline begins with random weights"),
        (["cluster.workers=2"], "cluster.workers 2: a baseline trains in one process"),
        (["network.depth=1"], "network.depth: unknown key"),
    ],
)
def test_mistakes_are_one_line(
    overrides: list[str],
    message: str,
    records: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(tmp_path / "run"), f"data.records={records}", "augment.crop=64", *overrides]
    if importlib.util.find_spec("monai") is None and "network.depth=1" not in overrides:
        message = "baselines need monai, which is not installed; pip install -r baselines"
    assert main(arguments, app) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_runs_on_other_records_or_twice_are_not_compared(records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    train_local(configure(records, network={"width": 1}, training={"epochs": 1}), run)
    with pytest.raises(UsageError, match="given more than once"):
        score_runs([run.uri, f"{run.uri}/"], "", tta=False)
    scored = score_runs([run.uri], "", tta=False)
    with pytest.raises(UsageError, match="same configuration and seed"):
        make_rows([*scored, *scored])

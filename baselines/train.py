"""Trains a network of MONAI under the conditions of `segan train --local`.

python -m baselines.train OUT --network dynunet data.records=RECORDS network.width=8

Records, sample order, augmentation, batches, epochs, seed, validation, metrics, checkpoints and
resuming are those of segan; network and optimizer are the baseline's own. OUT is a run like any
other for `segan runs`, but its segmentor is not S, so that segan cannot load it.
"""

from __future__ import annotations

import functools
import signal
import sys
from enum import StrEnum
from typing import Annotated, Any

import torch
import typer
from torch.optim import AdamW

from baselines.networks import (
    BaselineSegmentor,
    Network,
    NetworkSpec,
    closest_width,
    require_monai,
    width_of_parameters,
)
from baselines.probabilities import segment, write_probabilities
from segan import storage
from segan.bench.measure import get_synchronize, interleave
from segan.cli.commands.options import ConfigSource, Debug, OverrideArgs, load_cli_config
from segan.cli.console import TrainingDisplay, echo
from segan.cli.main import main
from segan.config import Config, NetworkConfig
from segan.data.records.frames import FrameShare
from segan.data.stream.batches import local_batches
from segan.errors import CorruptedError, StorageError, UsageError
from segan.inference.predictor import Member
from segan.inference.weights import find_difference, read_weights
from segan.networks.critic import Critic, build_critic
from segan.networks.segmentor import Segmentor
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.runs.run import Run
from segan.storage.lease import current_fence, hold_lease
from segan.training.device import resolve_local_device, resolve_performance, torch_device
from segan.training.distributed import single_process_group
from segan.training.launch import build_trainer, record_hardware, stopped_error
from segan.training.resume import resolve_resume
from segan.training.step import SegAN
from segan.training.timer import StageTimer
from segan.training.trainer import Callbacks
from segan.utils.signals import graceful_shutdown

# Keys of run.json's identity that a baseline has beside those of the configuration.
NETWORK_KEY, WIDTH_KEY, PARAMETERS_KEY, MATCH_KEY = (
    f"baseline.{name}" for name in ("network", "width", "parameters", "match")
)
NUM_TIMED_STEPS = 3

app = typer.Typer(pretty_exceptions_enable=False)


class Match(StrEnum):
    """What a baseline's width makes about equal to SegAN's."""

    PARAMETERS = "parameters"
    TIME = "time"


class Baseline(SegAN):
    """A network of MONAI and its optimiser, trained by SegAN's own step without a critic."""

    optimizer_class = AdamW

    def __init__(
        self,
        spec: NetworkSpec,
        config: Config,
        device: torch.device,
        stage_timer: StageTimer | None = None,
    ):
        self.spec = spec
        super().__init__(config, device, stage_timer)

    def _build_segmentor(self, seed: int) -> Segmentor:
        return self.spec.build(seed)

    def _build_critic(self, seed: int) -> Critic:
        return build_critic(NetworkConfig(width=1), seed)  # it is never called


def baseline_config(config: Config, learning_rate: float) -> Config:
    """The configuration of a SegAN run with the losses and the optimiser of a baseline.

    Raises:
        UsageError: it asks for what a baseline does not do.
    """
    if config.training.init:
        raise UsageError("training.init: a baseline begins with random weights; leave it out")
    if config.cluster.workers > 1:
        raise UsageError(
            f"cluster.workers {config.cluster.workers}: a baseline trains in one process; leave it "
            "out"
        )
    return config.with_overrides(
        {
            "loss.critic": "none",
            "loss.dice_weight": 1.0,
            "loss.cross_entropy_weight": 1.0,
            "logistic.initial_k": 1.0,  # the plain sigmoid
            "logistic.final_k": 1.0,
            "optimizer.learning_rate": learning_rate,
            "optimizer.betas": (0.9, 0.999),  # AdamW's own
            "optimizer.schedule": "linear",
            "optimizer.warmup_fraction": 0.0,
        }
    )


def train_baseline(
    config: Config,
    run: Run,
    network: Network,
    match: Match = Match.PARAMETERS,
    learning_rate: float = 0.001,
    callbacks: Callbacks | None = None,
) -> None:
    """Trains a baseline to its end, from its latest checkpoint if it has one.

    At the end the maps of the best epoch are written, with and without TTA.

    Args:
        config: of the SegAN run that it is compared with.

    Raises:
        UsageError: the configuration does not fit, or the run was begun with another one.
        StoppedError: `callbacks.should_stop` returned True.
    """
    require_monai()
    with hold_lease(run.uri), single_process_group():
        run = Run(run.uri, current_fence(run.uri))
        _train_baseline(config, run, network, match, learning_rate, callbacks or Callbacks())


def _train_baseline(
    segan_config: Config,
    run: Run,
    network: Network,
    match: Match,
    learning_rate: float,
    callbacks: Callbacks,
) -> None:
    config = baseline_config(segan_config, learning_rate)
    resume_point, recorded = resolve_resume(config, run), run.recorded_identity()
    device = torch_device(resolve_local_device(config.cluster).device)
    config = resolve_performance(config, device.type, recorded)
    spec = _find_spec(segan_config, config, network, match, device, recorded)
    identity = {
        NETWORK_KEY: network.value,
        WIDTH_KEY: spec.width,
        PARAMETERS_KEY: spec.num_parameters(),
        MATCH_KEY: match.value,
    }
    stream = resume_point.spec
    run.create_or_resume(config, stream.sampler.manifest.fingerprint, identity, stream.lanes)
    echo(f"{run}: {network} of width {spec.width}, {identity[PARAMETERS_KEY]:,} parameters")
    if not resume_point.is_finished:
        record_hardware(config, run, device)
        trainer = build_trainer(
            config,
            run,
            resume_point,
            callbacks,
            device,
            build_model=functools.partial(Baseline, spec),
        )
        trainer.train(local_batches(stream))
        if trainer.stopped:
            raise stopped_error(run)
    frames = FrameShare(stream.records, stream.sampler.manifest, config.data.validation)
    _write_best_probabilities(run, spec, frames, device)


def _find_spec(
    segan_config: Config,
    config: Config,
    network: Network,
    match: Match,
    device: torch.device,
    recorded: dict[str, Any],
) -> NetworkSpec:
    """The network of a run: of the width that it began with, or of one that matches SegAN's."""
    if WIDTH_KEY in recorded:
        width = recorded[WIDTH_KEY]
        if not isinstance(width, int) or width < 1:
            raise CorruptedError(f"run.json: {WIDTH_KEY}: expected a width, found {width!r}")
    elif match is Match.PARAMETERS:
        width = width_of_parameters(network, config)
    else:
        width = width_of_time(network, segan_config, config, device)
    return NetworkSpec.of(network, width, config)


def width_of_time(
    network: Network, segan_config: Config, config: Config, device: torch.device
) -> int:
    """The width at which a baseline's step takes about as long as SegAN's, by measurement.

    A process group must be initialised.

    Args:
        segan_config: of the SegAN run.
        config: of the baseline.
    """
    if config.cluster.threads_per_worker:
        torch.set_num_threads(config.cluster.threads_per_worker)
    generator, side = torch.Generator().manual_seed(0), config.augment.crop
    size = (config.training.batch_size, 3, side, side)
    image = torch.rand(size, generator=generator).to(device)
    truth = (image[:, :1] > 0.5).float().expand(-1, config.network.classes, -1, -1)
    segan = SegAN(segan_config, device)

    def time_ratio(width: int) -> float:
        baseline = Baseline(NetworkSpec.of(network, width, config), config, device)
        models = {"SegAN": segan, "baseline": baseline}
        steps = {n: functools.partial(m.train_step, image, truth) for n, m in models.items()}
        times = interleave(steps, NUM_TIMED_STEPS, get_synchronize(device))
        # On a CPU not the wall time, which other processes lengthen.
        own, reference = (
            min(times[name].seconds if device.type == "cuda" else times[name].cpu)
            for name in ("baseline", "SegAN")
        )
        echo(f"{network} of width {width}: a step takes {own / reference:.2f} times SegAN's")
        return own / reference

    return closest_width(network, 1.0, time_ratio)


def _write_best_probabilities(
    run: Run, spec: NetworkSpec, frames: FrameShare, device: torch.device
) -> None:
    best = run.best_checkpoint()
    if best is None:
        raise StorageError(f"{run}: finished, but no validated checkpoint can be read")
    segmentor = read_baseline(best, spec)
    for tta in (False, True):
        config = best.config.with_overrides({"evaluation.tta": tta})
        member = Member(lambda: segmentor, config, best.thresholds, best.uri, device=device)
        write_probabilities(run, best, tta, segment(member, frames))
    echo(f"{best.uri}: Jaccard {best.jaccard:.3f} at {best.threshold:g}")


def read_baseline(checkpoint: Checkpoint, spec: NetworkSpec) -> BaselineSegmentor:
    """The segmentor of a baseline's checkpoint, in evaluation mode.

    Raises:
        CorruptedError: the weights do not match their checksum, or are not those of the network.
    """
    weights, segmentor = read_weights(checkpoint), spec.build(0)
    if difference := find_difference(weights, segmentor.state_dict()):
        where = storage.join(checkpoint.uri, SEGMENTOR_FILE)
        raise CorruptedError(f"{where}: not the weights of {spec.name}: {difference}")
    segmentor.load_state_dict(weights)
    return segmentor.eval()


@app.command(epilog="python -m baselines.train runs/dynunet --network dynunet network.width=8")
def train(
    run: Annotated[str, typer.Argument(metavar="OUT", help="Folder for the run.")],
    overrides: OverrideArgs = None,
    network: Annotated[Network, typer.Option(help="Network to train.")] = Network.DYNUNET,
    match: Annotated[
        Match,
        typer.Option(
            help="Its width has about as many parameters as S at network.width, or takes about as "
            "long for a step as SegAN, which is measured at the start."
        ),
    ] = Match.PARAMETERS,
    learning_rate: Annotated[
        float, typer.Option(help="AdamW's at the start; it falls linearly to 0.")
    ] = 0.001,
    config: ConfigSource = None,
    debug: Debug = False,
) -> None:
    """Train a baseline with Dice and cross-entropy; repeat the command to resume a stopped one.

    Configuration and overrides are those of the SegAN run that it is compared with; loss, logistic
    and optimizer are the baseline's own. SIGTERM or Ctrl-C saves a checkpoint and stops.
    """
    with (
        graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request,
        TrainingDisplay() as display,
    ):
        callbacks = Callbacks(on_step_end=display, should_stop=stop_request)
        settings = load_cli_config(config, overrides)
        train_baseline(settings, Run(run), network, match, learning_rate, callbacks)


if __name__ == "__main__":
    sys.exit(main(commands=app, name="python -m baselines.train"))

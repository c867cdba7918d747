"""From a configuration and a place in storage to a training that is ready to go."""

from __future__ import annotations

import os
import platform

import torch

from segan import storage
from segan.config import Config
from segan.data.batches import Plan, local_batches
from segan.data.records import Manifest, read_frames, read_manifest
from segan.data.sequence import Sequence
from segan.errors import UsageError
from segan.runs import Run
from segan.training.distributed import rank, single_process_group, world_size
from segan.training.loop import Training, Watchers


def make_plan(config: Config, run: Run) -> Plan:
    """The rows that are left of a run, from its latest checkpoint or from the first.

    Reads no image, so what cannot work is said before any long work.

    Raises:
        UsageError: the configuration does not fit the records.
        StorageError: the records or the run cannot be read.
    """
    storage.check_access(run.uri)
    manifest = read_manifest(config.data.records)
    _check(config, manifest)
    latest = run.latest()
    return Plan.of(
        config.data.records,
        Sequence(manifest, config.data.train, config.training.seed),
        config.training.epochs,
        latest.samples if latest else 0,
        config.training.batch_size,
        config.cluster.workers,
    )


def open_training(config: Config, run: Run, plan: Plan, watchers: Watchers) -> Training:
    """The loop with networks in the state that the plan starts from; a process group must be up."""
    torch.set_num_threads(_threads(config))
    device = _device(config)
    manifest, split = plan.sequence.manifest, config.data.validation
    frames = read_frames(plan.records, manifest, split, rank(), world_size())
    training = Training(config, run, plan, frames, device, watchers)
    if plan.start:
        latest = run.latest()
        assert latest is not None, "a plan starts at a checkpoint"
        training.resume_from(latest)
    return training


def train_here(config: Config, run: Run, watchers: Watchers | None = None) -> None:
    """A whole training in this process, where a breakpoint stops it.

    Raises:
        UsageError: more than one worker is asked for.
    """
    if config.cluster.workers != 1:
        raise UsageError(
            f"cluster.workers {config.cluster.workers}: --local trains with 1, in this process"
        )
    plan = make_plan(config, run)
    run.begin(config, plan.sequence.manifest.fingerprint, hardware())
    if plan.done:
        return
    with single_process_group():
        training = open_training(config, run, plan, watchers or Watchers())
        training.train(local_batches(plan))


def hardware() -> str:
    """The machine in words, for run.json."""
    cores = os.cpu_count()
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {cores} CPU cores"
    return f"{platform.processor() or platform.machine()}, {cores} CPU cores"


def _check(config: Config, manifest: Manifest) -> None:
    side, frame = config.augment.crop, min(manifest.height, manifest.width)
    if side > frame:
        raise UsageError(
            f"augment.crop {side}: the records' frames are {manifest.width} x {manifest.height} "
            f"pixels; use a crop of at most {frame}, or ingest at a larger size"
        )
    if config.network.classes != manifest.classes:
        raise UsageError(
            f"network.classes {config.network.classes}: the records' masks have {manifest.classes}"
        )
    for split in (config.data.train, config.data.validation):
        if manifest.rows(split) == 0:
            raise UsageError(f"split {split!r}: the records have no image in it")


def _device(config: Config) -> torch.device:
    if torch.cuda.is_available() and config.cluster.gpus_per_worker > 0:
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _threads(config: Config) -> int:
    if config.cluster.threads_per_worker:
        return config.cluster.threads_per_worker
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, (os.cpu_count() or 1) // here)

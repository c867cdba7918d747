"""From a configuration and a place in storage to a training that is ready to go."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable

import torch

from segan import storage
from segan.config import Config
from segan.data.batches import Plan, local_batches
from segan.data.records import Manifest, read_frames, read_manifest
from segan.data.sequence import Sequence
from segan.errors import StoppedError, StorageError, UsageError
from segan.lease import hold
from segan.retrieval import verify
from segan.runs import Checkpoint, Run
from segan.terminal import say
from segan.training.distributed import rank, single_process_group, world_size
from segan.training.loop import Training, Watchers


def check(config: Config, run: Run) -> Plan:
    """The whole run's rows, if there is nothing against it.

    Reads no image and no checkpoint, so what cannot work is said before any long work.

    Raises:
        UsageError: the configuration does not fit the records.
        StorageError: the records or the run cannot be read.
    """
    storage.check_access(run.uri)
    manifest = read_manifest(config.data.records)
    _check(config, manifest)
    return _plan(config, manifest, 0)


def make_plan(config: Config, run: Run, tell: Callable[[str], None] = say) -> Plan:
    """The rows that are left of a run, from its newest whole checkpoint or from the first.

    Reads that checkpoint through, so it is for one process to make, and for the ranks to take.

    Args:
        tell: is given a line for each checkpoint that is passed over.

    Raises:
        UsageError: the configuration does not fit the records.
        StorageError: storage cannot be read, or there are checkpoints and none is whole.
    """
    whole = check(config, run)
    checkpoint = find_start(run, tell)
    if checkpoint is None:
        return whole
    plan = _plan(config, whole.sequence.manifest, checkpoint.samples)
    return dataclasses.replace(plan, checkpoint=checkpoint)


def find_start(run: Run, tell: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint whose manifest and files hold; None where the run has none yet.

    Raises:
        StorageError: there are some, and none holds.
    """
    whole, damaged = run.survey()
    for checkpoint in reversed(whole):
        wrong = "; ".join(file.wrong for file in verify(checkpoint) if file.wrong)
        if not wrong and "progress" not in checkpoint.info:
            wrong = "an older segan's, which this one cannot go on from"
        if not wrong:
            break
        damaged[checkpoint.name] = wrong
    else:
        if damaged:
            raise StorageError(
                f"{run}: none of its checkpoints is whole ("
                + ", ".join(f"{name}: {wrong}" for name, wrong in damaged.items())
                + "); bring one back from a copy, or begin again under another name"
            )
        return None
    for name, wrong in damaged.items():
        tell(f"{run}: checkpoint {name} is not whole and passed over: {wrong}")
    return checkpoint


def _plan(config: Config, manifest: Manifest, start: int) -> Plan:
    return Plan(
        config.data.records,
        Sequence(manifest, config.data.train, config.training.seed),
        config.training.epochs,
        start,
        config.training.batch_size,
        config.cluster.workers,
    )


def open_training(
    config: Config, run: Run, plan: Plan, watchers: Watchers, runs_here: int = 1
) -> Training:
    """The loop with networks in the state that the plan starts from; a process group must be up.

    Args:
        runs_here: how many trainings share the node's cores.
    """
    torch.set_num_threads(_threads(config, runs_here))
    manifest, split = plan.sequence.manifest, config.data.validation
    frames = read_frames(plan.records, manifest, split, rank(), world_size())
    return Training(config, run, plan, frames, _device(config), watchers)


def stopped_error(run: Run) -> StoppedError:
    """What to say of a run that was told to stop and did."""
    latest = run.latest()
    assert latest is not None, "a run that stops in order leaves a checkpoint"
    step = latest.info["metrics"]["step"]
    return StoppedError(
        f"{run}: stopped after step {step}, with a checkpoint; the same command goes on from there"
    )


def train_here(config: Config, run: Run, watchers: Watchers | None = None) -> None:
    """A whole training in this process, where a breakpoint stops it.

    Raises:
        UsageError: more than one worker is asked for, or another process trains this run.
        StoppedError: a watcher wished it to stop.
    """
    with hold(run.uri):
        _train_here(config, run, watchers)


def _train_here(config: Config, run: Run, watchers: Watchers | None) -> None:
    if config.cluster.workers != 1:
        raise UsageError(
            f"cluster.workers {config.cluster.workers}: --local trains with 1, in this process"
        )
    plan = make_plan(config, run)
    run.begin(config, plan.sequence.manifest.fingerprint)
    if plan.done:
        return
    with single_process_group():
        note_hardware(run)
        training = open_training(config, run, plan, watchers or Watchers())
        training.train(local_batches(plan))
    if training.stopped:
        raise stopped_error(run)


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


def note_hardware(run: Run) -> None:
    """Adds to run.json how the workers lie and what rank 0 sees of its machine."""
    if rank() > 0:
        return
    workers = f"{world_size()} workers, {_workers_here()} on a node of "
    machine = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        machine = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    spread = workers if world_size() > 1 else ""
    run.note_hardware(f"{spread}{machine}, {os.cpu_count()} CPU cores")


def _workers_here() -> int:
    """Workers of this training on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _threads(config: Config, runs_here: int) -> int:
    if config.cluster.threads_per_worker:
        return config.cluster.threads_per_worker
    return max(1, (os.cpu_count() or 1) // (_workers_here() * runs_here))

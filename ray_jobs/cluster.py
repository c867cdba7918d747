"""Joining a Ray cluster, and whether what is asked for fits it."""

from __future__ import annotations

import importlib
import logging
import os

import ray

from segan.config import ClusterConfig
from segan.errors import UsageError

CPUS_FOR_DATA = 1  # Ray Data's read tasks need one that no worker holds
TRIAL_CPUS = 0.01  # of a trial's own actor, beside those of its workers


def connect(debug: bool = False) -> None:
    """Joins the cluster of RAY_ADDRESS or of the job, or starts one on this machine.

    Args:
        debug: lets the output of Ray's processes through to this terminal.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    level = logging.INFO if debug else logging.ERROR
    if os.environ.get("RAY_ADDRESS") and not debug:
        # This process's own core, which warns of what Ray's libraries do; the log files keep it.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Without an address a Ray of our own starts, which nobody else on the network is to reach.
    own = {} if os.environ.get("RAY_ADDRESS") else {"_node_ip_address": "127.0.0.1"}
    ray.init(log_to_driver=debug, logging_level=level, **own)
    if not debug:
        # Ray's own log files keep everything; its loggers are set up by these imports.
        for name in ("ray.data", "ray.train"):
            importlib.import_module(name)
            logging.getLogger(name).setLevel(logging.ERROR)


def check_fits(config: ClusterConfig) -> None:
    """Raises UsageError, with the numbers, for a run that the cluster could never place."""
    have = ray.cluster_resources()
    wanted = {
        "CPU": config.workers * config.cpus_per_worker + CPUS_FOR_DATA,
        "GPU": config.workers * config.gpus_per_worker,
    }
    for kind, amount in wanted.items():
        if amount > have.get(kind, 0):
            kept = f" and {CPUS_FOR_DATA} for reading data" if kind == "CPU" else ""
            each = config.cpus_per_worker if kind == "CPU" else config.gpus_per_worker
            raise UsageError(
                f"cluster: {config.workers} workers of {each:g} {kind}{kept} need {amount:g} "
                f"{kind}, the cluster has {have.get(kind, 0):g}; use fewer cluster.workers or "
                f"less cluster.{kind.lower()}s_per_worker"
            )


def trials_at_once(config: ClusterConfig) -> int:
    """How many trials of this size the cluster holds together, with CPUs kept for reading data.

    Raises:
        UsageError: not even one, with the numbers.
    """
    have = ray.cluster_resources()
    each = config.workers * config.cpus_per_worker + TRIAL_CPUS
    held = [(have.get("CPU", 0) - CPUS_FOR_DATA) / each]
    if config.gpus_per_worker:
        held.append(have.get("GPU", 0) / (config.workers * config.gpus_per_worker))
    if min(held) < 1:
        raise UsageError(
            f"cluster: a trial of {config.workers} workers takes {each:g} CPU, and {CPUS_FOR_DATA} "
            f"is kept for reading data; the cluster has {have.get('CPU', 0):g}. Use fewer "
            "cluster.workers or less cluster.cpus_per_worker"
        )
    return int(min(held))

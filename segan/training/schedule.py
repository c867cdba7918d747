"""Schedules of the logistic's k and of the learning rate, as functions of the progress."""

from __future__ import annotations

import math

from segan.config import LogisticConfig, OptimizerConfig


def logistic_k(epoch: int, epochs: int, config: LogisticConfig) -> float:
    """Returns k of the adaptive logistic in an epoch (section 3).

    k decays every `decay_every_epochs` down to `final_k`. With `stretch_to_run`, the decays that
    this takes are spread evenly from the first epoch to the last.

    Args:
        epoch: from 0.
        epochs: of the run.
    """
    if config.stretch_to_run:
        ratio = math.log(config.final_k / config.initial_k) / math.log(config.decay)
        num_decays = math.ceil(ratio - 1e-9)  # where rounding exceeds an integer
        decays = math.floor(num_decays * epoch / max(1, epochs - 1) + 0.5)
    else:
        decays = math.floor(epoch / config.decay_every_epochs)
    return max(config.final_k, config.initial_k * config.decay**decays)


def learning_rates(
    samples: int, total: int, workers: int, config: OptimizerConfig
) -> tuple[float, float]:
    """Returns Adam's learning rates of S and of C after `samples` of `total` images (section 3).

    During the warm-up, the scheduled rate is multiplied by the completed fraction of the warm-up.

    Args:
        samples: images that all workers together have trained on, 0 to total.
        total: images of the run, all epochs.
        workers: of the run; `lr_scaling` scales the rate by them.
    """
    initial = config.learning_rate
    critic_initial = initial if config.critic_rate is None else config.critic_rate
    return (
        _scheduled(initial, samples, total, workers, config),
        _scheduled(critic_initial, samples, total, workers, config),
    )


def _scheduled(
    initial: float, samples: int, total: int, workers: int, config: OptimizerConfig
) -> float:
    factor = {"none": 1.0, "linear": float(workers), "sqrt": math.sqrt(workers)}
    rate = initial * factor[config.lr_scaling]
    warmup_samples = config.warmup_fraction * total
    if samples < warmup_samples:
        rate *= samples / warmup_samples
    if config.schedule == "constant":
        return rate
    return rate * max(0.0, 1.0 - samples / total)

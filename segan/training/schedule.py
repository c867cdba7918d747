"""What changes over a run: the steepness k and the learning rate, both functions of progress."""

from __future__ import annotations

import math

from segan.config import LogisticConfig, OptimizerConfig


def logistic_k(epoch: int, epochs: int, config: LogisticConfig) -> float:
    """k of the adaptive logistic in an epoch (section 3).

    One decay each `every` epochs down to `final_k`. Scaled, as many decays as that takes are
    spread evenly from the first epoch to the last, however few epochs there are.

    Args:
        epoch: counted from 0.
        epochs: of the whole run.
    """
    if config.stretch_to_run:
        ratio = math.log(config.final_k / config.initial_k) / math.log(config.decay)
        num_decays = math.ceil(ratio - 1e-9)  # a ratio that floats put just above a whole number
        decays = math.floor(num_decays * epoch / max(1, epochs - 1) + 0.5)
    else:
        decays = math.floor(epoch / config.decay_every_epochs)
    return max(config.final_k, config.initial_k * config.decay**decays)


def learning_rate(samples: int, total: int, workers: int, config: OptimizerConfig) -> float:
    """Adam's learning rate after `samples` of `total` images (section 3).

    A warm-up multiplies what the schedule gives by the part of it that is over.

    Args:
        samples: images seen so far by all workers together, 0 to total.
        total: images of the whole run, all epochs.
        workers: of the run; `workers_rule` says what they do to the rate.
    """
    factor = {"none": 1.0, "linear": float(workers), "sqrt": math.sqrt(workers)}
    rate = config.learning_rate * factor[config.lr_scaling]
    warmup_samples = config.warmup_fraction * total
    if samples < warmup_samples:
        rate *= samples / warmup_samples
    if config.schedule == "constant":
        return rate
    return rate * max(0.0, 1.0 - samples / total)

"""Checkpoints of a training that goes on: what is in them, and which are kept."""

from __future__ import annotations

import torch.distributed as dist

from segan.config import Config
from segan.data.batches import Plan
from segan.runs import Run
from segan.training import state
from segan.training.distributed import largest_difference, rank
from segan.training.log import RunLog
from segan.training.step import Adversaries


def epoch_name(epochs: int) -> str:
    """Of the checkpoint after a validated epoch."""
    return f"epoch_{epochs:05d}"


def step_name(step: int) -> str:
    """Of a checkpoint between two validations."""
    return f"step_{step:07d}"


class Saver:
    """Writes a run's checkpoints, each time from all ranks' state together."""

    def __init__(self, config: Config, run: Run, plan: Plan, log: RunLog | None):
        """
        Args:
            log: rank 0's, which is in storage up to a checkpoint before that checkpoint is.
        """
        self.config, self.run, self.plan, self.log = config, run, plan, log

    def save(
        self,
        name: str,
        adversaries: Adversaries,
        epochs: int,
        samples: int,
        metrics: dict[str, object],
        progress: dict[str, object],
    ) -> None:
        """A checkpoint of this name; on every rank, and none goes on before it is there.

        Args:
            epochs: done.
            samples: images seen so far by all workers.
            metrics: of the epoch with its validation, or of the step.
            progress: what the loop goes on with beside weights and optimisers.
        """
        for network in (adversaries.segmentor, adversaries.critic, adversaries.product):
            assert largest_difference(network) == 0, "every rank must hold the same weights"
        statistics = state.gather_statistics(adversaries)
        if rank() == 0:
            assert self.log
            # A kill between these two leaves lines beyond the last checkpoint, and going on from
            # that takes them back; in the other order lines would be missing.
            self.log.flush()
            manifest = self.plan.sequence.manifest
            info = {
                "epochs": epochs,
                "samples": samples,
                "metrics": metrics,
                "progress": progress,
                "fingerprint": manifest.fingerprint,
                "frame": {"width": manifest.width, "height": manifest.height},
                "config": self.config.model_dump(mode="json"),
            }
            saved = self.run.save(name, state.capture(adversaries, statistics), info)
            self.run.tidy(saved)
        dist.barrier()

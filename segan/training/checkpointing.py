"""Checkpoints of a training that goes on: what is in them, and which are kept."""

from __future__ import annotations

import torch.distributed as dist

from segan.config import Config
from segan.data.stream.batches import StreamSpec
from segan.runs.checkpoint import CheckpointInfo
from segan.runs.run import Run
from segan.training import state
from segan.training.distributed import max_replica_divergence, rank
from segan.training.metrics_log import MetricsLog
from segan.training.step import SegAN


def epoch_checkpoint_name(epochs: int) -> str:
    """Of the checkpoint after a validated epoch."""
    return f"epoch_{epochs:05d}"


def step_checkpoint_name(step: int) -> str:
    """Of a checkpoint between two validations."""
    return f"step_{step:07d}"


class CheckpointManager:
    """Writes a run's checkpoints, each time from all ranks' state together."""

    def __init__(self, config: Config, run: Run, spec: StreamSpec, metrics_log: MetricsLog | None):
        """
        Args:
            log: rank 0's, which is in storage up to a checkpoint before that checkpoint is.
        """
        self.config, self.run, self.spec, self.metrics_log = config, run, spec, metrics_log

    def save(
        self,
        name: str,
        model: SegAN,
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
        for network in (model.segmentor, model.critic, model.eval_segmentor):
            assert max_replica_divergence(network) == 0, "every rank must hold the same weights"
        stats = state.gather_batch_norm_stats(model)
        if rank() == 0:
            assert self.metrics_log
            # A kill between these two leaves lines beyond the last checkpoint, and going on from
            # that takes them back; in the other order lines would be missing.
            self.metrics_log.flush()
            manifest = self.spec.sampler.manifest
            info = CheckpointInfo(
                epochs=epochs,
                samples=samples,
                metrics=metrics,
                progress=progress,
                fingerprint=manifest.fingerprint,
                frame={"width": manifest.width, "height": manifest.height},
                config=self.config.model_dump(mode="json"),
            )
            saved = self.run.save_checkpoint(name, state.serialise_checkpoint(model, stats), info)
            self.run.prune_checkpoints(saved)
        dist.barrier()

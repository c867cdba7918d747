"""ASHA with cooperative stopping: a pruned trial ends by itself instead of being killed.

Ray Tune stops a trial by killing its actor, and leaves the worker group and the placement group of
the actor's Ray Train run to be cleaned up by others. Here the scheduler publishes its decisions in
an actor; the trial's workers read them after each validation, and a pruned trial returns from its
training like a finished one. Nothing is killed, so nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ray
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from segan.runs.trial import Trial


class StopDecisions:
    """The class of the actor that holds, for each trial and epoch, whether the trial continues."""

    def __init__(self) -> None:
        self._decisions: dict[tuple[str, int], bool] = {}
        self._condition = asyncio.Condition()

    async def set(self, trial: str, epoch: int, should_continue: bool) -> None:
        async with self._condition:
            self._decisions[trial, epoch] = should_continue
            self._condition.notify_all()

    async def get(self, trial: str, epoch: int) -> bool:
        """Waits for the decision; all ranks of a trial get the same one."""
        async with self._condition:
            await self._condition.wait_for(lambda: (trial, epoch) in self._decisions)
        return self._decisions[trial, epoch]


@contextlib.contextmanager
def decisions_actor() -> Iterator[Any]:
    """The handle of a StopDecisions actor, which is killed after the block."""
    decisions = ray.remote(num_cpus=0, max_concurrency=1000)(StopDecisions).remote()
    try:
        yield decisions
    finally:
        ray.kill(decisions)


class CooperativeASHAScheduler(ASHAScheduler):
    """ASHA that publishes stop decisions to an actor; to Ray Tune it always returns CONTINUE.

    A trial is judged by its best epoch so far, which is the checkpoint that it would give. Its last
    epoch alone is misleading: the validation Jaccard changes by 0.05 and more between epochs.

    Ray's base class knows a trial by its `trial_id` only. Here that is the trial's name in the
    study, which stays the same when the driver is restarted.
    """

    def __init__(
        self,
        decisions: Any,
        on_validation: Callable[[str, dict[str, Any], bool], None],
        max_epochs: int,
        grace_period: int,
        reduction_factor: float,
    ):
        """
        Args:
            decisions: the handle of a StopDecisions actor.
            on_validation: called with the trial's name, its metrics and whether it continues.
        """
        super().__init__(
            time_attr="epoch",
            metric="jaccard",
            mode="max",
            max_t=max_epochs,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
        )
        self._decisions, self._on_validation = decisions, on_validation
        self._max_epochs = max_epochs
        self._best_jaccard: dict[str, float] = {}

    def replay(self, trial: Trial) -> bool:
        """Records in the rungs the epochs that a trial had validated before a restart.

        Returns:
            Whether the trial continues from there.
        """
        key, should_continue = SimpleNamespace(trial_id=trial.name), True
        super().on_trial_add(None, key)
        for metrics in trial.epoch_metrics():
            should_continue = self._record_result(None, key, metrics)
        return should_continue

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, _trial_key(trial))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        if "jaccard" in result:
            key = _trial_key(trial)
            should_continue = self._record_result(controller, key, result)
            self._on_validation(key.trial_id, result, should_continue)
            self._decisions.set.remote(key.trial_id, result["epoch"], should_continue)
        return TrialScheduler.CONTINUE

    def _record_result(self, controller: Any, key: Any, metrics: dict[str, Any]) -> bool:
        best = max(metrics["jaccard"], self._best_jaccard.get(key.trial_id, 0.0))
        self._best_jaccard[key.trial_id] = best
        decision = super().on_trial_result(controller, key, {**metrics, "jaccard": best})
        # ASHA also stops a trial at its last epoch, where it is finished, not pruned.
        return bool(decision == TrialScheduler.CONTINUE or metrics["epoch"] >= self._max_epochs)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.on_trial_remove(controller, trial)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        with contextlib.suppress(KeyError):  # removed already
            super().on_trial_remove(controller, _trial_key(trial))


def _trial_key(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial.config["trial"])

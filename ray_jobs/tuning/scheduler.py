"""ASHA that asks a trial to stop instead of killing it.

Tune ends a trial by killing its actor, and what the actor had started, the worker group of a Ray
Train run with its placement group, is left for others to clean up. Here the scheduler's word goes
to a judge, the trial's workers ask it after each validation, and a trial that is given up returns
from its training as one that is finished does. Nothing is killed, so nothing can be left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from segan.runs.trial import Trial


class StopDecisions:
    """An actor that holds, for each trial and epoch, whether the trial goes on."""

    def __init__(self) -> None:
        self._decisions: dict[tuple[str, int], bool] = {}
        self._condition = asyncio.Condition()

    async def set(self, trial: str, epoch: int, go_on: bool) -> None:
        async with self._condition:
            self._decisions[trial, epoch] = go_on
            self._condition.notify_all()

    async def get(self, trial: str, epoch: int) -> bool:
        """Waits for it; every rank of a trial gets the same."""
        async with self._condition:
            await self._condition.wait_for(lambda: (trial, epoch) in self._decisions)
        return self._decisions[trial, epoch]


@contextlib.contextmanager
def decisions_actor() -> Iterator[Any]:
    """A judge for as long as the block runs."""
    decisions = ray.remote(num_cpus=0, max_concurrency=1000)(StopDecisions).remote()
    try:
        yield decisions
    finally:
        ray.kill(decisions)


@dataclass(frozen=True)
class _TrialKey:
    """What the rungs know a trial by: its name in the study, the same after a restart."""

    trial_id: str


class CooperativeASHAScheduler(ASHAScheduler):
    """ASHA whose word to stop goes to the judge; to Tune it always says to go on.

    A trial is worth its best epoch so far, which is the checkpoint that it would give. The last one
    alone misjudges it: a validation's Jaccard swings by 0.05 and more from epoch to epoch.
    """

    def __init__(
        self,
        decisions: Any,
        on_validation: Callable[[str, dict[str, Any], bool], None],
        **options: Any,
    ):
        super().__init__(time_attr="epoch", metric="jaccard", mode="max", **options)
        self._decisions, self._on_validation = decisions, on_validation
        self._best_jaccard: dict[str, float] = {}

    def replay(self, trial: Trial) -> bool:
        """Puts what a trial did before the driver was started again into the rungs.

        Returns:
            Whether the trial goes on from there.
        """
        key, decision = _TrialKey(trial.name), TrialScheduler.CONTINUE
        super().on_trial_add(None, key)
        for line in trial.epoch_metrics():
            decision = self._record_result(None, key, line)
        return bool(
            decision == TrialScheduler.CONTINUE or trial.epoch_metrics()[-1]["epoch"] >= self._max_t
        )

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, _trial_key(trial))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "jaccard" not in result:
            return TrialScheduler.CONTINUE
        key = _trial_key(trial)
        decision = self._record_result(controller, key, result)
        # At its last epoch a trial is told to stop too: it was not given up, it is done.
        go_on = decision == TrialScheduler.CONTINUE or result["epoch"] >= self._max_t
        self._on_validation(key.trial_id, result, go_on)
        self._decisions.set.remote(key.trial_id, result["epoch"], go_on)
        return TrialScheduler.CONTINUE

    def _record_result(self, controller: Any, key: _TrialKey, metrics: dict[str, Any]) -> str:
        best = max(metrics["jaccard"], self._best_jaccard.get(key.trial_id, 0.0))
        self._best_jaccard[key.trial_id] = best
        decision: str = super().on_trial_result(controller, key, {**metrics, "jaccard": best})
        return decision

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.on_trial_remove(controller, trial)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        self._trial_info.pop(_trial_key(trial).trial_id, None)


def _trial_key(trial: Any) -> _TrialKey:
    return _TrialKey(trial.config["trial"])

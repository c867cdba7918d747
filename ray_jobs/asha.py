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

from segan.search import Trial


class Judge:
    """An actor that holds, for each trial and epoch, whether the trial goes on."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[str, int], bool] = {}
        self._news = asyncio.Condition()

    async def give(self, trial: str, epoch: int, go_on: bool) -> None:
        async with self._news:
            self._verdicts[trial, epoch] = go_on
            self._news.notify_all()

    async def verdict(self, trial: str, epoch: int) -> bool:
        """Waits for it; every rank of a trial gets the same."""
        async with self._news:
            await self._news.wait_for(lambda: (trial, epoch) in self._verdicts)
        return self._verdicts[trial, epoch]


@contextlib.contextmanager
def judging() -> Iterator[Any]:
    """A judge for as long as the block runs."""
    judge = ray.remote(num_cpus=0, max_concurrency=1000)(Judge).remote()
    try:
        yield judge
    finally:
        ray.kill(judge)


@dataclass(frozen=True)
class Named:
    """What the rungs know a trial by: its name in the study, the same after a restart."""

    trial_id: str


class AskingASHA(ASHAScheduler):
    """ASHA whose word to stop goes to the judge; to Tune it always says to go on.

    A trial is worth its best epoch so far, which is the checkpoint that it would give. The last one
    alone misjudges it: a validation's Jaccard swings by 0.05 and more from epoch to epoch.
    """

    def __init__(
        self, judge: Any, tell: Callable[[str, dict[str, Any], bool], None], **options: Any
    ):
        super().__init__(time_attr="epoch", metric="jaccard", mode="max", **options)
        self._judge, self._tell = judge, tell
        self._best: dict[str, float] = {}

    def replay(self, trial: Trial) -> bool:
        """Puts what a trial did before the driver was started again into the rungs.

        Returns:
            Whether the trial goes on from there.
        """
        name, word = Named(trial.name), TrialScheduler.CONTINUE
        super().on_trial_add(None, name)
        for line in trial.epochs():
            word = self._weigh(None, name, line)
        return bool(word == TrialScheduler.CONTINUE or trial.epochs()[-1]["epoch"] >= self._max_t)

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, _named(trial))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "jaccard" not in result:
            return TrialScheduler.CONTINUE
        name = _named(trial)
        word = self._weigh(controller, name, result)
        # At its last epoch a trial is told to stop too: it was not given up, it is done.
        go_on = word == TrialScheduler.CONTINUE or result["epoch"] >= self._max_t
        self._tell(name.trial_id, result, go_on)
        self._judge.give.remote(name.trial_id, result["epoch"], go_on)
        return TrialScheduler.CONTINUE

    def _weigh(self, controller: Any, name: Named, line: dict[str, Any]) -> str:
        best = max(line["jaccard"], self._best.get(name.trial_id, 0.0))
        self._best[name.trial_id] = best
        word: str = super().on_trial_result(controller, name, {**line, "jaccard": best})
        return word

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.on_trial_remove(controller, trial)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        self._trial_info.pop(_named(trial).trial_id, None)


def _named(trial: Any) -> Named:
    return Named(trial.config["trial"])

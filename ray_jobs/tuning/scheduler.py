"""ASHA with cooperative stopping: a pruned trial ends by itself instead of being killed.

Ray Tune stops a trial by killing its actor, and leaves the worker group and the placement group of
the actor's Ray Train run to be cleaned up by others. Here the scheduler publishes its decisions in
an actor; the trial's workers read them after each validation, and a pruned trial returns from its
training like a finished one. Nothing is killed, so nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from ray_jobs.cluster.queue import on_this_node
from segan.storage.lease import LeaseConfig

REPUBLISH_INTERVAL_S = 5.0
# Calls that never wait have threads of their own, so that waiting ones cannot keep them out.
PROMPT = "prompt"


class StopDecisions:
    """The class of the actor that holds, for each trial and epoch, whether the trial continues."""

    def __init__(self, driver_ttl_s: float = LeaseConfig.ttl_s) -> None:
        """
        Args:
            driver_ttl_s: after so many seconds without a call of the driver nobody waits for it any
                longer, since another driver can then have taken the study over.
        """
        self._decisions: dict[tuple[str, int], bool] = {}
        self._condition = asyncio.Condition()
        self._driver_ttl_s, self._last_contact = driver_ttl_s, time.monotonic()

    @ray.method(concurrency_group=PROMPT)
    async def update(self, decisions: Mapping[tuple[str, int], bool]) -> None:
        self._last_contact = time.monotonic()
        async with self._condition:
            self._decisions |= decisions
            self._condition.notify_all()

    @ray.method(concurrency_group=PROMPT)
    async def count(self) -> int:
        """The number of decisions; the driver asks for it every few seconds."""
        self._last_contact = time.monotonic()
        return len(self._decisions)

    async def get(self, trial: str, epoch: int) -> bool | None:
        """Waits for the decision, which a trial's rank 0 asks for; None if the driver is silent."""
        async with self._condition:
            while (trial, epoch) not in self._decisions:
                patience = self._last_contact + self._driver_ttl_s - time.monotonic()
                if patience <= 0:
                    return None
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._condition.wait(), patience)
        return self._decisions[trial, epoch]

    @ray.method(concurrency_group=PROMPT)
    async def is_stopped(self, trial: str) -> bool:
        """Whether a trial has been stopped, which a killed process of it may not have learnt."""
        return any(not go for (name, _), go in self._decisions.items() if name == trial)


class DecisionPublisher:
    """The driver's side of StopDecisions: keeps all decisions, and the first one if there are two.

    Attributes:
        actor: the handle.
    """

    def __init__(self, actor: Any):
        self.actor = actor
        self._decisions: dict[tuple[str, int], bool] = {}

    def publish(self, trial: str, epoch: int, should_continue: bool) -> bool:
        """Publishes a decision; returns the one that holds.

        A trial that is started again can report an epoch twice.
        """
        decision = self._decisions.setdefault((trial, epoch), should_continue)
        self.actor.update.remote({(trial, epoch): decision})
        return decision

    def publish_again_if_lost(self) -> None:
        """Publishes all decisions if the actor has been restarted, which empties it."""
        decisions = dict(self._decisions)
        if ray.get(self.actor.count.remote()) < len(decisions):
            self.actor.update.remote(decisions)


def start_stop_decisions() -> Any:
    """Starts the actor; returns its handle."""
    options = {"num_cpus": 0, "max_concurrency": 1000, "max_restarts": -1, "max_task_retries": -1}
    groups = {"concurrency_groups": {PROMPT: 10}, "scheduling_strategy": on_this_node()}
    return ray.remote(**options, **groups)(StopDecisions).remote()


@contextlib.contextmanager
def decision_publisher() -> Iterator[DecisionPublisher]:
    """Starts a StopDecisions actor, which is killed after the block.

    It is on the driver's node, since any other can be lost; and if its process is killed, Ray
    starts it again and the calls of the trials that wait in it are repeated.
    """
    publisher, finished = DecisionPublisher(start_stop_decisions()), threading.Event()

    def republish() -> None:
        while not finished.wait(REPUBLISH_INTERVAL_S):
            with contextlib.suppress(RayError):  # the actor is being restarted, or the block ends
                publisher.publish_again_if_lost()

    thread = threading.Thread(target=republish, daemon=True)
    thread.start()
    try:
        yield publisher
    finally:
        finished.set()
        ray.kill(publisher.actor)
        thread.join()


class CooperativeASHAScheduler(ASHAScheduler):
    """ASHA that publishes stop decisions to an actor; to Ray Tune it always returns CONTINUE.

    A trial is judged by its best epoch so far, which is the checkpoint that it would give. Its last
    epoch alone is misleading: the validation Jaccard changes by 0.05 and more between epochs.

    Ray's base class knows a trial by its `trial_id` only. Here that is the trial's name in the
    study, which stays the same when the driver is restarted.
    """

    def __init__(
        self,
        publisher: DecisionPublisher,
        on_validation: Callable[[str, dict[str, Any], bool], None],
        max_epochs: int,
        grace_period: int,
        reduction_factor: float,
    ):
        """
        Args:
            publisher: gets the decisions.
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
        self._publisher, self._on_validation = publisher, on_validation
        self._max_epochs = max_epochs
        self._best_jaccard: dict[str, float] = {}

    def replay(self, trial: str, epochs: Sequence[Mapping[str, Any]]) -> bool:
        """Records in the rungs the epochs that a trial had validated before a restart.

        Args:
            epochs: their metrics, in order.

        Returns:
            Whether the trial continues from there.
        """
        key, should_continue = SimpleNamespace(trial_id=trial), True
        super().on_trial_add(None, key)
        for metrics in epochs:
            should_continue = self._record_result(None, key, metrics)
        return should_continue

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        super().on_trial_add(controller, _trial_key(trial))

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        if "jaccard" in result:
            key = _trial_key(trial)
            should_continue = self._publisher.publish(
                key.trial_id, result["epoch"], self._record_result(controller, key, result)
            )
            self._on_validation(key.trial_id, result, should_continue)
        return TrialScheduler.CONTINUE

    def _record_result(self, controller: Any, key: Any, metrics: Mapping[str, Any]) -> bool:
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

"""Which trials ASHA prunes, against rungs computed by hand."""

import asyncio

import pytest

from ray_jobs.tuning.scheduler import CooperativeASHAScheduler, DecisionPublisher, StopDecisions


@pytest.fixture
def scheduler() -> CooperativeASHAScheduler:
    """Rungs at epochs 1 and 2; at each, the better half continues."""
    return CooperativeASHAScheduler(
        DecisionPublisher(None), lambda *_: None, max_epochs=4, grace_period=1, reduction_factor=2
    )


class Trials:
    """Replays trials, numbered in order, with these validations."""

    def __init__(self, scheduler: CooperativeASHAScheduler):
        self.scheduler, self.count = scheduler, 0

    def replay(self, *jaccards: float) -> bool:
        self.count += 1
        epochs = [{"epoch": n, "jaccard": jaccard} for n, jaccard in enumerate(jaccards, 1)]
        return self.scheduler.replay(f"trial_{self.count}", epochs)


@pytest.fixture
def trials(scheduler: CooperativeASHAScheduler) -> Trials:
    return Trials(scheduler)


def test_the_better_half_continues(trials: Trials) -> None:
    assert trials.replay(0.4)  # the first one
    assert not trials.replay(0.3)  # below the median of 0.4
    assert trials.replay(0.35)  # the median of 0.4 and 0.3


def test_a_trial_is_judged_by_its_best_epoch_so_far(trials: Trials) -> None:
    assert trials.replay(0.4, 0.6)
    assert not trials.replay(0.5, 0.55)  # 0.55 is below 0.6
    assert trials.replay(0.7, 0.2)  # 0.7 is above the median of 0.6 and 0.55


def test_a_trial_is_not_pruned_at_its_last_epoch(trials: Trials) -> None:
    assert trials.replay(0.4, 0.6, 0.6, 0.6)
    assert trials.replay(0.5, 0.6, 0.1, 0.1)


def test_a_trial_waits_for_its_decision_as_long_as_the_driver_is_there() -> None:
    async def wait() -> list[bool | None]:
        decisions = StopDecisions(driver_ttl_s=0.3)
        first = asyncio.create_task(decisions.get("trial_000", 1))
        silent = asyncio.create_task(decisions.get("trial_001", 1))
        for _ in range(5):  # together longer than the driver may be silent
            await asyncio.sleep(0.1)
            assert await decisions.count() == 0
        await decisions.update({("trial_000", 1): False, ("trial_000", 2): True})
        assert await decisions.is_stopped("trial_000")
        assert not await decisions.is_stopped("trial_001")
        return [await first, await decisions.get("trial_000", 2), await silent]

    assert asyncio.run(wait()) == [False, True, None]

"""A queue of runs: each starts when its workers fit beside those of the runs that came before it.

Ray places a run's workers all at once or not at all, but it does not keep a CPU for reading data,
and Ray Train gives up after a minute. Therefore each run states what it will reserve in a named
actor, which lives as long as its driver, and waits until that fits. The name is the run's number in
the queue; Ray creates at most one actor of a name. A driver that is frozen loses its place.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors, list_placement_groups
from ray.util.state.exception import RayStateApiException

from ray_jobs.cluster.capacity import (
    CPUS_FOR_DATA,
    POLL_INTERVAL_S,
    TOLERANCE,
    TRIAL_ACTOR_CPUS,
    total_resources,
)
from segan.config import ClusterConfig
from segan.errors import StoppedError, UsageError
from segan.utils.text import count_noun

logger = logging.getLogger(__name__)

NAMESPACE = "segan-runs"
CALL_TIMEOUT_S = 10.0
LIMIT = 1000  # of actors and of placement groups that are listed


@dataclass(frozen=True)
class Claim:
    """What a run reserves for its workers.

    Attributes:
        name: of the run, for messages.
        cpus, gpus: of all workers.
        job_id: of the Ray job that the run belongs to.
    """

    name: str
    cpus: float
    gpus: float
    job_id: str = ""

    @classmethod
    def of_run(cls, name: str, config: ClusterConfig) -> Claim:
        """The claim of a run of this job with its full number of workers."""
        cpus, gpus = (config.workers * n for n in (config.cpus_per_worker, config.reserved_gpus))
        return cls(name, cpus, gpus, ray.get_runtime_context().get_job_id())


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Places an actor on the node of this process, so that it lives as long."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def enter_queue(actor_class: Any, *args: Any) -> tuple[Any, int]:
    """Creates an actor with the next number in the queue; returns its handle and the number.

    Args:
        actor_class: of `ray.remote`; its method `get_claim` returns the run's Claim, and None
            after too long without a call of `renew_claim`.
        args: of its constructor.
    """
    while True:
        number = 1 + max(_numbers(), default=0)
        options = actor_class.options(name=str(number), namespace=NAMESPACE)
        try:
            actor = options.remote(*args)
        except ValueError:  # another driver was faster
            continue
        # A number can be freed and taken again behind a larger one, whose driver then does not
        # count this claim.
        if max(_numbers(), default=number) == number:
            return actor, number
        ray.kill(actor)


def wait_for_turn(
    config: ClusterConfig,
    name: str,
    number: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    timeout_s: float = 0.0,
) -> None:
    """Waits until a run fits beside those before it, and says which runs it waits for.

    An elastic run needs its minimum of workers. A claim of the same run is that of a driver whose
    lease was taken over, and which may be frozen; it does not count.

    Args:
        name: of the run, as in its claim.
        number: in the queue; None to wait for all that are in it.
        timeout_s: seconds to wait; 0 waits without a limit.

    Raises:
        UsageError: the others have not ended after `timeout_s`.
        StoppedError: `should_stop` returned True.
    """
    reported, deadline = "", time.monotonic() + timeout_s
    while True:
        if number is not None:
            ray.get_actor(str(number), NAMESPACE).renew_claim.remote()
        claims = read_claims()
        before = [
            claim
            for other, claim in claims.items()
            if (number is None or other < number) and claim.name != name
        ]
        if not _shortfall(config, before) and _is_available(config):
            return
        before += _claims_of_other_jobs(claims.values())
        shortfall = _shortfall(config, before)
        if not before or not shortfall:
            return
        holders = ", ".join(claim.name for claim in before)
        message = f"{name}: {shortfall}; the others are reserved by {holders}"
        if timeout_s and time.monotonic() > deadline:
            raise UsageError(f"{message}; not free after cluster.resource_timeout_s={timeout_s:g}")
        if should_stop():
            raise StoppedError(f"{name}: stopped while it waited for free resources")
        if holders != reported:
            logger.warning(f"{message}; waiting for them to end")
            reported = holders
        time.sleep(POLL_INTERVAL_S)


def report_busy_cluster(kind: str) -> None:
    """Says who reserves the cluster's CPUs or GPUs, if not one is free.

    For jobs whose tasks Ray queues by itself, and starts when the first is free. They do not wait
    here, because an autoscaler starts nodes only for tasks that exist.

    Args:
        kind: "CPU" or "GPU".
    """
    if ray.available_resources().get(kind, 0) >= 1 - TOLERANCE:
        return
    runs = read_claims().values()
    holders = ", ".join(claim.name for claim in [*runs, *_claims_of_other_jobs(runs)])
    logger.warning(
        f"none of {count_noun(total_resources()[kind], kind)} is free; waiting for "
        f"{holders or 'tasks of other jobs'} to end"
    )


def read_claims() -> dict[int, Claim]:
    """The claims of all runs in the queue by their numbers, in the order of the queue."""
    claims = {}
    for number in sorted(_numbers()):
        try:
            actor = ray.get_actor(str(number), NAMESPACE)
            if claim := ray.get(actor.get_claim.remote(), timeout=CALL_TIMEOUT_S):
                claims[number] = claim
        except GetTimeoutError:  # its node is frozen or lost, which Ray notices soon
            claims[number] = Claim("a run that does not answer", math.inf, math.inf)
        except (ValueError, RayError):  # its driver has ended since the listing
            continue
    return claims


def _claims_of_other_jobs(claims: Iterable[Claim]) -> list[Claim]:
    """What the actors and placement groups of other jobs reserve, such as a Serve application.

    Empty if the cluster has no dashboard, which lists them. The actors of a study's trials, which
    have next to nothing, do not count.

    Args:
        claims: of all runs; their jobs are left out.
    """
    known = {claim.job_id for claim in claims} | {ray.get_runtime_context().get_job_id()}
    query = {"detail": True, "limit": LIMIT, "raise_on_missing_output": False}
    query |= {"timeout": int(CALL_TIMEOUT_S)}
    found: list[tuple[str, str, list[dict[str, float]]]] = []
    try:
        for actor in list_actors(filters=[("state", "=", "ALIVE")], **query):
            if not actor.placement_group_id:
                resources = [actor.required_resources or {}]
                found.append((actor.job_id, actor.name or actor.class_name, resources))
        for group in list_placement_groups(filters=[("state", "=", "CREATED")], **query):
            bundles = [bundle["unit_resources"] for bundle in group.bundles or []]
            found.append((group.creator_job_id, "placement group", bundles))
    except (RayStateApiException, OSError, RuntimeError) as error:
        logger.info(f"other users of the cluster are not known: {error}")
        return []
    others = []
    for job_id, name, bundles in found:
        cpus, gpus = (sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU"))
        if job_id not in known and (cpus > TRIAL_ACTOR_CPUS or gpus):
            others.append(Claim(f"{name} of Ray job {job_id}", cpus, gpus, job_id))
    return others


def _shortfall(config: ClusterConfig, claims: Sequence[Claim]) -> str:
    """What a run lacks beside these claims, with the numbers; "" if it fits."""
    total, required = total_resources(), _required_resources(config)
    reserved = {"CPU": sum(c.cpus for c in claims), "GPU": sum(c.gpus for c in claims)}
    for kind, amount in required.items():
        free = max(total[kind] - reserved[kind], 0.0)
        if amount > free + TOLERANCE:
            return f"{count_noun(amount, kind)} required, {free:g} of {total[kind]:g} free"
    return ""


def _is_available(config: ClusterConfig) -> bool:
    """Whether nobody uses what a run needs at this moment."""
    available = ray.available_resources()
    return all(
        amount <= available.get(kind, 0) + TOLERANCE
        for kind, amount in _required_resources(config).items()
    )


def _required_resources(config: ClusterConfig) -> dict[str, float]:
    workers = config.required_workers
    return {
        "CPU": workers * config.cpus_per_worker + CPUS_FOR_DATA,
        "GPU": workers * config.reserved_gpus,
    }


def _numbers() -> list[int]:
    actors = list_named_actors(all_namespaces=True)
    return [int(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE]

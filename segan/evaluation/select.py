"""Selects the members of an ensemble by their scores on the validation frames."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from segan.errors import UsageError
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.sweep import Sweep
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.runs.ensemble import Choice, Rule
from segan.runs.identity import require_same
from segan.runs.run import find_checkpoint
from segan.runs.study import Study

logger = logging.getLogger(__name__)

NUM_MEMBERS = 3
MAX_GREEDY_CANDIDATES = 8  # each one runs over the validation frames


def find_candidates(study: str | None, members: Sequence[str] = ()) -> list[Checkpoint]:
    """The best checkpoint of each run, the best run first.

    Args:
        study: URI of a study; trials without a complete checkpoint are left out.
        members: URIs of runs, or of checkpoints to use instead of the best of their run.

    Raises:
        UsageError: fewer than three different runs have a complete checkpoint.
        StorageError: the study or a member does not exist.
    """
    trials = Study(study).trials() if study else []
    checkpoints = sorted(map(find_checkpoint, members), key=lambda c: c.jaccard)
    found = {_run_uri(checkpoint): checkpoint for checkpoint in checkpoints}
    without_checkpoint = []
    for run in (trial.run for trial in trials):
        best = run.best_checkpoint()
        if best is None:
            without_checkpoint.append(run.uri)
        else:
            found.setdefault(run.uri, best)
    # Copies of a run have the same weights and are one candidate.
    distinct = {c.entry(SEGMENTOR_FILE)["sha256"]: c for c in found.values()}.values()
    if without_checkpoint:
        logger.warning(
            "no candidates, for lack of a validated checkpoint: %s", ", ".join(without_checkpoint)
        )
    if len(distinct) < NUM_MEMBERS:
        raise UsageError(
            f"an ensemble needs {NUM_MEMBERS} different runs with a complete checkpoint, found "
            f"{len(distinct)}: {', '.join(map(_run_uri, distinct)) or 'none'}"
            + (f"; without one: {', '.join(without_checkpoint)}" if without_checkpoint else "")
            + "; train more runs or add some with --member"
        )
    return sorted(distinct, key=lambda c: (-c.jaccard, c.uri))


def check_compatible(candidates: Sequence[Checkpoint]) -> None:
    """Raises UsageError unless all were trained and validated on the same records."""
    first = candidates[0]
    expected = _compatibility_key(first)
    for other in candidates[1:]:
        advice = f"the members of an ensemble must agree, so leave out this one or {first.uri}"
        require_same(expected, _compatibility_key(other), other.uri, advice)


def select_members(
    candidates: Sequence[Checkpoint], maps: ProbabilityCache, greedy: bool
) -> dict[Rule, tuple[list[Checkpoint], Sweep]]:
    """The three members that each rule selects, and the sweep of their mean map.

    Args:
        greedy: applies the rule "greedy" too.
    """
    chosen: dict[Rule, list[Checkpoint]] = {"best": list(candidates[:NUM_MEMBERS])}
    if greedy:
        chosen["greedy"] = select_members_greedily(candidates[:MAX_GREEDY_CANDIDATES], maps.jaccard)
    return {rule: (members, maps.sweep(members)) for rule, members in chosen.items()}


def select_members_greedily(
    candidates: Sequence[Checkpoint], jaccard: Callable[[Sequence[Checkpoint]], float]
) -> list[Checkpoint]:
    """Greedy forward selection from the best candidate; ties go to the earlier candidate.

    Args:
        candidates: the best first.
        jaccard: scores the ensemble of some checkpoints.
    """
    selected, remaining = [candidates[0]], list(candidates[1:])
    while len(selected) < NUM_MEMBERS:
        scores = [jaccard([*selected, candidate]) for candidate in remaining]
        selected.append(remaining.pop(scores.index(max(scores))))
    return selected


def make_choice(members: Sequence[Checkpoint], sweep: Sweep) -> Choice:
    return Choice(
        members=tuple(member.uri for member in members),
        threshold=sweep.best_threshold(),
        jaccard=sweep.scores_at(sweep.best_thresholds())["jaccard"],
    )


def _compatibility_key(checkpoint: Checkpoint) -> dict[str, object]:
    """What the members of an ensemble must have in common."""
    config = checkpoint.config
    return {
        "frame": "{} x {} pixels".format(*checkpoint.frame_size),
        "number of classes": config.network.classes,
        "classes": ", ".join(checkpoint.labels),
        "data fingerprint": checkpoint.info.fingerprint,
        "training split": config.data.train,
        "validation split": config.data.validation,
    }


def _run_uri(checkpoint: Checkpoint) -> str:
    return checkpoint.uri.rsplit("/checkpoints/", 1)[0]

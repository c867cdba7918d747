"""Which runs make the best ensemble, by their maps of the validation frames."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from segan import storage
from segan.data.records import Manifest, read_frames, read_manifest
from segan.errors import UsageError
from segan.evaluation.maps import ValidationMaps
from segan.evaluation.report.card import card
from segan.evaluation.report.findings import assess
from segan.evaluation.report.write import Seen, report_at_end
from segan.evaluation.sweep import Sweep
from segan.inference.ensemble import (
    Choice,
    Ensemble,
    Rule,
    check_place,
    member_entry,
    write_ensemble,
)
from segan.runs import SEGMENTOR, Checkpoint, find_checkpoint
from segan.search import Study

MEMBERS = 3
GREEDY_CANDIDATES = 8  # each costs a pass over the validation frames


def build_ensemble(
    out: str,
    candidates: Sequence[Checkpoint],
    records: str = "",
    greedy: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Ensemble:
    """Chooses three of the candidates, finds their threshold on validation, and writes them.

    Args:
        out: URI of the ensemble.
        candidates: what `find_candidates` gave.
        records: URI of the records; "" for those that the best candidate was trained on.
        greedy: takes the greedy choice; the default one stands beside it in `choices`.
        tell: is given a line for each model that runs over the validation frames, and for the
            report, which the best candidate's `evaluation.report` wishes or not.

    Raises:
        UsageError: the place is in use, or the candidates do not fit together or the records.
        StorageError: a checkpoint fails its checksum, or storage cannot be read or written.
    """
    out = storage.normalise(out)
    check_place(out, overwrite, MEMBERS)
    data = candidates[0].config.data
    records = records or data.records
    manifest = read_manifest(records)
    check_alike(candidates, manifest, records)
    rule: Rule = "greedy" if greedy else "best"
    with tempfile.TemporaryDirectory() as folder:
        frames = read_frames(records, manifest, data.validation)
        maps = ValidationMaps(frames, Path(folder), tell)
        chosen = choose(candidates, maps, greedy)
        members, sweep = chosen[rule]
        threshold = sweep.best_threshold()
        ensemble = Ensemble(
            members=tuple(member_entry(member) for member in members),
            threshold=threshold,
            scores=sweep.at(threshold),
            jaccard_curve=tuple(round(float(j), 6) for j in sweep.curve()),
            rule=rule,
            choices={name: _choice(*chosen[name]) for name in chosen},
            candidates={candidate.uri: candidate.jaccard for candidate in candidates},
            records=storage.normalise(records),
            fingerprint=manifest.fingerprint,
            splits={split: manifest.rows(split) for split in manifest.splits},
            trained_on=data.train,
            validated_on=data.validation,
            frame={"width": manifest.width, "height": manifest.height},
            classes=manifest.classes,
        )
        findings = assess(maps, data.validation, members, threshold)
        write_ensemble(out, ensemble, members, card(out, ensemble, findings), overwrite)
        if candidates[0].config.evaluation.report:
            report_at_end(out, tell, Seen(maps, findings))
    return ensemble


def find_candidates(study: str | None, members: Sequence[str] = ()) -> list[Checkpoint]:
    """The best checkpoint of each run, the best run first.

    Args:
        study: URI of a study, whose trials are runs; those without a whole checkpoint do not count.
        members: URIs of runs, or of checkpoints to be taken instead of their runs' best.

    Raises:
        UsageError: fewer than three different runs have a whole checkpoint.
        StorageError: the study or a member is not there.
    """
    trials = Study(study).trials() if study else []
    named = sorted(map(find_checkpoint, members), key=lambda c: c.jaccard)
    found = {_run_of(checkpoint): checkpoint for checkpoint in named}
    without = []
    for run in (trial.run for trial in trials):
        best = run.best()
        if best is None:
            without.append(run.uri)
        else:
            found.setdefault(run.uri, best)
    # The same training twice, as a copied run or a repeated trial, is one candidate.
    different = {c.files[SEGMENTOR]["sha256"]: c for c in found.values()}.values()
    if len(different) < MEMBERS:
        raise UsageError(
            f"an ensemble needs {MEMBERS} different runs with a whole checkpoint, found "
            f"{len(different)}: {', '.join(map(_run_of, different)) or 'none'}"
            + (f"; without one: {', '.join(without)}" if without else "")
            + "; train more, or name more with --member"
        )
    return sorted(different, key=lambda c: (-c.jaccard, c.uri))


def check_alike(candidates: Sequence[Checkpoint], manifest: Manifest, records: str) -> None:
    """Raises UsageError unless all were trained and validated on these very records."""
    first = candidates[0]
    wanted = _nature(first)
    for other in candidates[1:]:
        for what, found in _nature(other).items():
            if found != wanted[what]:
                raise UsageError(
                    f"{other.uri}: its {what} is {found}, but {wanted[what]} in {first.uri}; "
                    "members of an ensemble must share it, so leave one of them out"
                )
    if manifest.fingerprint != wanted["data fingerprint"]:
        raise UsageError(
            f"{records}: data fingerprint {manifest.fingerprint}, but the runs were trained on "
            f"{wanted['data fingerprint']}; name their own records with --records"
        )


def choose(
    candidates: Sequence[Checkpoint], maps: ValidationMaps, greedy: bool
) -> dict[Rule, tuple[list[Checkpoint], Sweep]]:
    """Each rule's three members, and the scores of their mean on the validation frames."""
    chosen: dict[Rule, list[Checkpoint]] = {"best": list(candidates[:MEMBERS])}
    if greedy:
        chosen["greedy"] = choose_greedily(candidates[:GREEDY_CANDIDATES], maps.jaccard)
    return {rule: (members, maps.sweep(members)) for rule, members in chosen.items()}


def choose_greedily(
    candidates: Sequence[Checkpoint], jaccard: Callable[[Sequence[Checkpoint]], float]
) -> list[Checkpoint]:
    """The first candidate, then twice the one whose company scores best; the earliest of equals."""
    chosen, left = [candidates[0]], list(candidates[1:])
    while len(chosen) < MEMBERS:
        scores = [jaccard([*chosen, candidate]) for candidate in left]
        chosen.append(left.pop(scores.index(max(scores))))
    return chosen


def _choice(members: Sequence[Checkpoint], sweep: Sweep) -> Choice:
    threshold = sweep.best_threshold()
    return Choice(
        members=tuple(member.uri for member in members),
        threshold=threshold,
        jaccard=sweep.at(threshold)["jaccard"],
    )


def _nature(checkpoint: Checkpoint) -> dict[str, object]:
    """What the members of an ensemble must have in common."""
    config = checkpoint.config
    return {
        "frame": "{} x {} pixels".format(*checkpoint.size),
        "number of classes": config.network.classes,
        "data fingerprint": checkpoint.info["fingerprint"],
        "training split": config.data.train,
        "validation split": config.data.validation,
    }


def _run_of(checkpoint: Checkpoint) -> str:
    return checkpoint.uri.rsplit("/checkpoints/", 1)[0]

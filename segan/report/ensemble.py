"""Builds an ensemble: selects members and threshold, and writes weights, card and report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from segan import storage
from segan.data.records.frames import map_samples
from segan.data.records.versions import read_version
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.result import evaluate_members
from segan.evaluation.select import NUM_MEMBERS, check_compatible, make_choice, select_members
from segan.evaluation.sweep import Sweep
from segan.report.card import build_commands, render_card
from segan.report.write import CachedEvaluation, try_write_report
from segan.runs.checkpoint import Checkpoint
from segan.runs.ensemble import Ensemble, Rule, check_output, describe_member, write_ensemble
from segan.storage.lease import current_fence, hold_lease


def build_ensemble(
    out: str,
    candidates: Sequence[Checkpoint],
    records: str = "",
    greedy: bool = False,
    overwrite: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Ensemble:
    """Selects three candidates and their threshold on the validation split, and writes them.

    Writes a report too, unless `evaluation.report` of the best candidate is false.

    Args:
        out: URI of the ensemble.
        candidates: of `find_candidates`.
        records: URI of the records; default: those that the best candidate was trained on.
        greedy: selects by greedy forward selection; `choices` then has the three best runs too.
        log: called with a message before each model runs and after the report.

    Raises:
        UsageError: `out` is not free, another process writes there, or the candidates were not
            trained on the same records.
        StorageError: a checkpoint fails its checksum, or storage cannot be read or written.
    """
    with hold_lease(out):
        return _build_ensemble(storage.normalise(out), candidates, records, greedy, overwrite, log)


def _build_ensemble(
    out: str,
    candidates: Sequence[Checkpoint],
    records: str,
    greedy: bool,
    overwrite: bool,
    log: Callable[[str], None],
) -> Ensemble:
    check_output(out, overwrite, NUM_MEMBERS)
    data = candidates[0].config.data
    records = records or data.records
    check_compatible(candidates)
    advice = "pass the records that the runs were trained on with --records"
    manifest = read_version(records, candidates[0].info.fingerprint, advice)
    rule: Rule = "greedy" if greedy else "best"
    with tempfile.TemporaryDirectory() as folder:
        samples = map_samples(records, manifest, data.validation, Path(folder))
        maps = ProbabilityCache(samples, Path(folder), log)
        selections = select_members(candidates, maps, greedy)
        members, sweep = selections[rule]
        ensemble = Ensemble(
            members=tuple(describe_member(member) for member in members),
            **score_fields(sweep, manifest.labels),
            rule=rule,
            choices={name: make_choice(*selections[name]) for name in selections},
            candidates={candidate.uri: candidate.jaccard for candidate in candidates},
            records=storage.normalise(records),
            fingerprint=manifest.fingerprint,
            splits={split: manifest.num_rows(split) for split in manifest.splits},
            train_split=data.train,
            validation_split=data.validation,
            frame={"width": manifest.width, "height": manifest.height},
            classes=manifest.classes,
            class_names=manifest.class_names,
        )
        result = evaluate_members(
            maps, data.validation, members, ensemble.thresholds, ensemble.labels
        )
        current_fence(out)()
        card = render_card(out, ensemble, result, build_commands(ensemble))
        write_ensemble(out, ensemble, members, card, overwrite)
        if candidates[0].config.evaluation.report:
            try_write_report(out, log, CachedEvaluation(maps, result))
    return ensemble


def score_fields(sweep: Sweep, labels: Sequence[str]) -> dict[str, Any]:
    """The thresholds and scores of an `Ensemble`."""
    thresholds = sweep.best_thresholds()
    fields = {
        "threshold": sweep.best_threshold(),
        "scores": sweep.scores_at(thresholds),
        "jaccard_curve": tuple(round(float(j), 6) for j in sweep.curve()),
    }
    if len(labels) == 1:
        return fields
    by_class = dict(zip(labels, sweep.class_scores_at(thresholds), strict=True))
    return fields | {"class_thresholds": thresholds, "class_scores": by_class}

"""Writes a report: report.html, and its numbers as report.json."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from segan import storage
from segan.data.records.frames import map_samples
from segan.data.records.versions import read_version
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.result import EvaluationResult, evaluate_members
from segan.report.build import Report, build_report, find_target
from segan.report.cases import build_cases, build_disagreement_cases
from segan.report.page import render_page
from segan.runs.run import REPORT_FILES
from segan.storage.lease import current_fence, hold_lease

Log = Callable[[str], None]


class CachedEvaluation(NamedTuple):
    """An evaluation that was computed before, with its probability maps."""

    maps: ProbabilityCache
    result: EvaluationResult


def write_report(
    uri: str,
    out: str = "",
    records: str = "",
    log: Log = lambda _: None,
    cached: CachedEvaluation | None = None,
) -> Report:
    """Evaluates a model on its validation frames and writes the report.

    Args:
        uri: of a run, a study or an ensemble.
        out: URI of the page, see `page_uri`; the numbers are written beside it, with .json.
        records: URI of the records; default: those that the model was trained on.
        log: called with a message before each model runs over the frames.
        cached: an evaluation to use instead of running the models.

    Raises:
        UsageError: there is no validated checkpoint yet, the records are different ones, or
            another process writes there.
        StorageError: a checkpoint fails its checksum, or storage cannot be read or written.
    """
    # A page elsewhere may share its folder with others, and be written while the run is trained.
    with hold_lease(f"{page_uri(uri, out)}.lock" if out else uri):
        return _write_report(uri, out, records, log, cached)


def _write_report(
    uri: str, out: str, records: str, log: Log, cached: CachedEvaluation | None
) -> Report:
    target = find_target(uri)
    if target.study and (unfinished := target.study.unfinished()):
        log(f"{target.uri}: {unfinished}")
    records = storage.normalise(records or target.records)
    advice = f"pass the records that {target.uri} was trained on with --records"
    manifest = read_version(records, target.members[0].info.fingerprint, advice)
    split = target.config.data.validation
    with tempfile.TemporaryDirectory() as folder:
        if cached is None:
            samples = map_samples(records, manifest, split, Path(folder))
            maps = ProbabilityCache(samples, Path(folder), log)
            result = evaluate_members(maps, split, target.members, target.thresholds, target.labels)
            cached = CachedEvaluation(maps, result)
        sizes = {name: manifest.num_rows(name) for name in manifest.splits}
        report = build_report(target, cached.result, sizes, records)
        page = render_page(
            report,
            target.run.metrics() if target.run else [],
            build_cases(*cached, target.members),
            build_disagreement_cases(*cached, target.members),
        )
    place = page_uri(uri, out)
    current_fence(uri)()
    storage.write_json(f"{place.removesuffix('.html')}.json", report.model_dump(mode="json"))
    storage.write_bytes(place, page.encode())
    return report


def try_write_report(uri: str, log: Log, cached: CachedEvaluation | None = None) -> None:
    """Writes a report; logs an error instead of raising it, so that the run stays successful."""
    try:
        write_report(uri, log=log, cached=cached)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        log(f"report not written ({reason}); write it with `segan report {uri}`")
    else:
        log(f"report: {page_uri(uri)}")


def page_uri(uri: str, out: str = "") -> str:
    """URI of the report's page: `out`, or by default report.html in the folder `uri`."""
    return storage.normalise(out) if out else storage.join(storage.normalise(uri), REPORT_FILES[1])

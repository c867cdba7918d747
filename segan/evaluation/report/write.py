"""Writes a report: report.html for people, report.json for programs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from segan import storage
from segan.data.records import Manifest, read_frames, read_manifest
from segan.errors import UsageError
from segan.evaluation.maps import ValidationMaps
from segan.evaluation.report.cases import draw_cases, draw_disputed
from segan.evaluation.report.findings import Findings, assess
from segan.evaluation.report.gather import Report, Subject, find_subject, gather
from segan.evaluation.report.page import draw_page
from segan.runs import REPORT

Tell = Callable[[str], None]


class Seen(NamedTuple):
    """Maps and findings of a model that has just been looked at."""

    maps: ValidationMaps
    findings: Findings


def write_report(
    uri: str,
    out: str = "",
    records: str = "",
    tell: Tell = lambda _: None,
    seen: Seen | None = None,
) -> Report:
    """One pass over the validation frames with each model, and what there is to say of it.

    Args:
        uri: of a run, a study or an ensemble.
        out: URI of the page, see `page_of`; the numbers lie beside it, in .json.
        records: URI of the records; "" for those that were trained on.
        tell: is given a line for each model that runs over the frames.
        seen: spares the pass.

    Raises:
        UsageError: there is no validated checkpoint yet, or the records are others.
        StorageError: a checkpoint fails its checksum, or storage cannot be read or written.
    """
    subject = find_subject(uri)
    records = storage.normalise(records or subject.records)
    manifest = read_manifest(records)
    _check(subject, manifest, records)
    split = subject.config.data.validation
    with tempfile.TemporaryDirectory() as folder:
        if seen is None:
            maps = ValidationMaps(read_frames(records, manifest, split), Path(folder), tell)
            seen = Seen(maps, assess(maps, split, subject.members, subject.threshold))
        sizes = {name: manifest.rows(name) for name in manifest.splits}
        report = gather(subject, seen.findings, sizes, records)
        page = draw_page(
            report,
            subject.run.metrics() if subject.run else [],
            draw_cases(*seen, subject.members),
            draw_disputed(*seen, subject.members),
        )
    place = page_of(uri, out)
    storage.write_json(f"{place.removesuffix('.html')}.json", report.model_dump(mode="json"))
    storage.write_bytes(place, page.encode())
    return report


def report_at_end(uri: str, tell: Tell, seen: Seen | None = None) -> None:
    """A report of what has just ended well, and stays so where the report fails."""
    try:
        write_report(uri, tell=tell, seen=seen)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        tell(f"no report ({reason}); segan report {uri} writes it")
    else:
        tell(f"report: {page_of(uri)}")


def page_of(uri: str, out: str = "") -> str:
    """Where the page of what is at `uri` lies, or will: report.html in it, or `out`."""
    return storage.normalise(out) if out else storage.join(storage.normalise(uri), REPORT[1])


def _check(subject: Subject, manifest: Manifest, records: str) -> None:
    trained = subject.members[0].info["fingerprint"]
    if manifest.fingerprint != trained:
        raise UsageError(
            f"{records}: data fingerprint {manifest.fingerprint}, but {subject.uri} was trained on "
            f"{trained}; name its own records with --records"
        )

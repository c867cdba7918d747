"""Earlier versions of records, which the trainings that began with them go on reading.

    <records>/   manifest.json  manifests/<fingerprint>.json ...

An ingest that changes records keeps the manifest that it replaces, and its shards. A run records
the fingerprint of its records when it begins, and every later start reads the manifest with that
fingerprint.
"""

from __future__ import annotations

from segan import storage
from segan.data.records.format import MANIFEST, Manifest, parse_manifest, read_manifest
from segan.errors import StorageError, UsageError

EARLIER_MANIFESTS = "manifests"
RUN_ADVICE = "resume with the records that the run began with, or use another URI"


def read_version(uri: str, fingerprint: str | None, advice: str = RUN_ADVICE) -> Manifest:
    """Reads the manifest with a fingerprint; the newest one if `fingerprint` is None.

    Args:
        advice: what the user can do if there is none; ends the message.

    Raises:
        UsageError: the records at `uri` have another fingerprint, and none of their earlier
            versions has this one.
        StorageError: there are no complete records at `uri`.
    """
    newest = read_manifest(uri)
    if fingerprint in (None, newest.fingerprint):
        return newest
    name = _earlier_manifest(uri, str(fingerprint))
    if not storage.exists(name):
        raise UsageError(
            f"{uri}: data fingerprint is {newest.fingerprint!r}, expected {fingerprint!r}, and no "
            f"earlier version has it; {advice}"
        )
    return parse_manifest(name)


def keep_version(uri: str, replacement: Manifest) -> None:
    """Keeps the manifest at `uri`, if there is one and its content is not the replacement's."""
    if not storage.exists(storage.join(uri, MANIFEST)):
        return
    existing = read_manifest(uri)
    if existing.fingerprint != replacement.fingerprint:
        name = _earlier_manifest(uri, existing.fingerprint)
        storage.write_json(name, existing.to_json())


def earlier_versions(uri: str) -> list[Manifest]:
    """The manifests that `keep_version` kept; those that cannot be parsed are left out."""
    manifests = []
    for name in storage.iter_names(storage.join(uri, EARLIER_MANIFESTS), ".json"):
        try:
            manifests.append(parse_manifest(storage.join(uri, EARLIER_MANIFESTS, name)))
        except StorageError:  # no run can use it
            continue
    return manifests


def _earlier_manifest(uri: str, fingerprint: str) -> str:
    return storage.join(uri, EARLIER_MANIFESTS, f"{fingerprint}.json")

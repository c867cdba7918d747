"""The comparison that decides whether stored work may be resumed or combined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segan.errors import UsageError

if TYPE_CHECKING:
    from segan.config import Config


def require_same(
    expected: Mapping[str, Any], found: Mapping[str, Any], where: str, advice: str
) -> None:
    """Raises UsageError, naming every key that differs, unless `found` equals `expected`.

    Args:
        where: URI of what was found; begins the message.
        advice: what the user can do; ends the message.
    """
    unknown = sorted(found.keys() - expected.keys())
    if unknown:
        raise UsageError(
            f"{where}: written by another version of segan, with the unknown key {unknown[0]}; "
            f"{advice}"
        )
    differences = [
        f"{key} is {found.get(key)!r}, expected {value!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    if differences:
        raise UsageError(f"{where}: {', '.join(differences)}; {advice}")


def config_identity(config: Config, *excluded_sections: str) -> dict[str, Any]:
    """The configuration's values by `section.key`, without those that change no result."""
    excluded: dict[str, Any] = {
        **dict.fromkeys(excluded_sections, True),
        "data": {"records"},
        "training": {"checkpoint_every_steps"},
        "evaluation": {"report"},
        "tracking": True,
    }
    tree = config.model_dump(mode="json", exclude=excluded)
    return {f"{section}.{key}": v for section, branch in tree.items() for key, v in branch.items()}

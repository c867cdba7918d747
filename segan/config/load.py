"""Loading a configuration from YAML files and command-line overrides.

config = load_config("ray_jobs/configs/paper.yaml", ["training.epochs=14", "network.width=8"])
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from segan.config.schema import Config
from segan.errors import UsageError


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file with `section.key=value` overrides on top.

    Args:
        path: a YAML file, or None for the paper's defaults.
        overrides: `section.key=value` each; the value is read as YAML.

    Raises:
        UsageError: the file cannot be read, or a key or value is not one of the tree's; the
            message names the nearest key that is.
    """
    tree = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """A tree of plain values as a Config; raises UsageError with one line for each mistake."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError("\n".join(_format_error(e) for e in error.errors())) from None


def iter_fields() -> Iterator[tuple[str, Any]]:
    """(`section.key`, its pydantic field) for every knob, in the order of the tree."""
    for section, field in Config.model_fields.items():
        for key, leaf in field.annotation.model_fields.items():  # type: ignore[union-attr]
            yield f"{section}.{key}", leaf


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise UsageError(f"configuration {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        detail = " ".join(str(error).split())
        raise UsageError(f"configuration {path}: not YAML ({detail})") from None
    if not isinstance(tree, dict):
        raise UsageError(f"configuration {path}: expected sections, found {type(tree).__name__}")
    # A section whose keys are all commented out is an empty one.
    return {key: {} if branch is None else branch for key, branch in tree.items()}


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, dot, leaf = key.partition(".")
    if not (separator and dot and section and leaf):
        raise UsageError(
            f"override {override!r}: expected section.key=value, as in network.width=8"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"override {override!r}: the value is not YAML") from None
    branch = tree.setdefault(section, {})
    if not isinstance(branch, dict):
        raise UsageError(f"configuration {section}: expected keys and values, found {branch!r}")
    branch[leaf] = value


def _format_error(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] != "extra_forbidden":
        found = (
            "" if isinstance(error["input"], dict | BaseModel) else f", found {error['input']!r}"
        )
        message = f"{error['msg'].removeprefix('Value error, ')}{found}"
        return f"configuration {key}: {message}" if key else f"configuration {message}"
    known = [name for name, _ in iter_fields()] + list(Config.model_fields)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"configuration {key}: unknown key; the nearest known one is {nearest[0]}"

"""Validation of a tree of plain values against the schema, with one line for each mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from segan.config.renamed import describe_rename
from segan.errors import UsageError
from segan.utils.text import shorten

MAX_SHOWN = 200  # characters of a key or value in a message
ModelT = TypeVar("ModelT", bound=BaseModel)


def validate(model: type[ModelT], tree: Mapping[str, Any]) -> ModelT:
    """Returns the tree as a `model`; raises UsageError with one line for each mistake."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        lines = [_format_error(model, details) for details in error.errors()]
        raise UsageError("\n".join(lines)) from None


def set_values(tree: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Sets values by `section.key` in a tree, in place.

    Raises:
        UsageError: the tree has something else than keys and values where a section belongs.
    """
    for key, value in values.items():
        section, _, leaf = key.partition(".")
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            raise UsageError(f"configuration {section}: expected keys and values, found {branch!r}")
        branch[leaf] = value


def iter_fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yields (`section.key`, its pydantic field) for every key, in the order of the schema."""
    for section, field in model.model_fields.items():
        assert isinstance(field.annotation, type)
        for key, leaf in field.annotation.model_fields.items():
            yield f"{section}.{key}", leaf


def _format_error(model: type[BaseModel], error: Any) -> str:
    value, key = error["input"], ".".join(str(part) for part in error["loc"])
    key = shorten(key, MAX_SHOWN)
    if rename := describe_rename(key, value):
        return f"configuration {key}: {rename}"
    if error["type"] == "extra_forbidden":
        known = [name for name, _ in iter_fields(model)] + list(model.model_fields)
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        return f"configuration {key}: unknown key; the nearest known one is {nearest[0]}"
    found = (
        "" if isinstance(value, dict | BaseModel) else f", found {shorten(repr(value), MAX_SHOWN)}"
    )
    message = f"{error['msg'].removeprefix('Value error, ')}{found}"
    return f"configuration {key}: {message}" if key else f"configuration {message}"

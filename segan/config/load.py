"""Loading a configuration from a YAML file and command-line overrides.

config = load_config("paper", ["training.epochs=14", "network.width=8"])
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from segan.config.schema import Config
from segan.config.validation import set_values, validate
from segan.errors import UsageError

SHIPPED_FOLDER = Path(__file__).with_name("shipped")
SURROGATE_PAIR = re.compile(r"\\ud[89ab]..\\ud[c-f]..")  # as JSON escapes a character above U+FFFF


class _Loader(yaml.SafeLoader):
    """Reads plain scalars as YAML 1.2 does.

    YAML 1.1, which PyYAML implements, reads off, on, yes and no as booleans, 1:30 as 90,
    2017-01-01 as a date and 1e-3 as a string.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping; raises ConstructorError for a key that stands twice: one would be lost."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            message = f"the key {name} stands twice, on lines {lines[name]} and {line}"
            raise yaml.constructor.ConstructorError(None, None, message)
        lines[name] = line
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first
    )
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def shipped_configs() -> dict[str, Path]:
    """Returns the configurations that come with segan: their files by their names, sorted."""
    return {path.stem: path for path in sorted(SHIPPED_FOLDER.glob("*.yaml"))}


def load_config(source: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Returns the configuration of a YAML file with overrides on top.

    Args:
        source: a YAML file, or the name of a shipped configuration, such as `paper`; a file of that
            name takes precedence. None for the paper's defaults.
        overrides: `section.key=value` each; the value is read as YAML, and the last of two for
            the same key wins.

    Raises:
        UsageError: the file cannot be read, or a key or value is invalid; the message names the
            nearest known key, or the new name of a renamed one.
    """
    tree = _read_file(_find_file(source)) if source is not None else {}
    set_values(tree, dict(_parse_override(override) for override in overrides))
    return parse_config(tree)


def parse_config(tree: dict[str, Any]) -> Config:
    """Returns a tree of plain values as a Config.

    Raises:
        UsageError: with one line for each mistake.
    """
    return validate(Config, tree)


def format_value(value: Any) -> str:
    """Returns a JSON value as YAML text that an override reads as the same value."""
    if isinstance(value, str):
        with contextlib.suppress(yaml.YAMLError, ValueError):
            if parse_yaml(value) == value:
                return value
    return SURROGATE_PAIR.sub(_to_yaml_escape, json.dumps(value))


def _to_yaml_escape(pair: re.Match[str]) -> str:
    """The escape of a character that JSON writes as two; YAML knows no such pairs."""
    character = json.loads('"' + pair[0] + '"')
    return f"\\U{ord(character):08x}"


def _find_file(source: str | Path) -> Path:
    """Returns the path of a shipped configuration, or of a file; it may not exist."""
    shipped = shipped_configs().get(str(source))
    return shipped if shipped and not Path(source).is_file() else Path(source)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        tree = parse_yaml(path.read_text()) or {}
    except OSError as error:
        raise UsageError(
            f"configuration {path}: cannot be read ({error.strerror}); expected a YAML file or one "
            f"of {', '.join(shipped_configs())}"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise UsageError(f"configuration {path}: not YAML ({detail})") from None
    if not isinstance(tree, dict):
        raise UsageError(f"configuration {path}: expected sections, found {type(tree).__name__}")
    # A section whose keys are all commented out is an empty one.
    return {key: {} if branch is None else branch for key, branch in tree.items()}


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    section, _, leaf = key.partition(".")
    if not (equals and section and leaf):
        raise UsageError(
            f"override {override!r}: expected section.key=value, as in network.width=8"
        )
    try:
        return key, parse_yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise UsageError(f"override {override!r}: the value is not YAML") from None


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML 1.2 text; raises YAMLError for a key that stands twice."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader

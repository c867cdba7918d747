"""Pages of HTML that need nothing else: one template each, one style sheet and its parts for all.

A page runs no script and loads nothing: no font, no picture but those inside it.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2


def render(template: str, **context: Any) -> str:
    """The page of a template, named by its place in `segan/`; text from `context` is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "percent": format_percent,
        "degrees": format_degrees,
    }
    return environment.get_template(template).render(**context)


def format_percent(fraction: float) -> str:
    """A share, 0 to 1, in words: whole percents, and a tenth below ten."""
    digits = 0 if fraction == 0 or fraction >= 0.0995 else 1
    return f"{100 * fraction:.{digits}f}\u00a0%"


def format_degrees(angle: float) -> str:
    """An angle in words."""
    return f"{angle:.0f}\u00b0".replace("-", "\u2212")


def _read_template(name: str) -> str:
    return files("segan").joinpath(name).read_text(encoding="utf-8")

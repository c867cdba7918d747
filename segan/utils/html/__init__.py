"""Self-contained HTML pages from Jinja templates, with a common style sheet and macros.

A page runs no script and loads nothing: its images are data URIs.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import jinja2


def render(template: str, **context: Any) -> str:
    """Renders a template; in `.html.j2` templates, strings in `context` are escaped.

    Args:
        template: its path from the package on, as `segan/report/page.html.j2`.
    """
    return _environment().get_template(template).render(**context)


def format_percent(fraction: float) -> str:
    """A fraction, 0 to 1, in percent, with one decimal below 10 %."""
    digits = 0 if fraction == 0 or fraction >= 0.0995 else 1
    return f"{100 * fraction:.{digits}f}\u00a0%"


def format_degrees(angle: float) -> str:
    """An angle in whole degrees."""
    return f"{angle:.0f}\u00b0".replace("-", "\u2212")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read_template),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "percent": format_percent,
        "degrees": format_degrees,
    }
    return environment


def _read_template(name: str) -> str:
    package, _, path = name.partition("/")
    return files(package).joinpath(path).read_text(encoding="utf-8")

"""Figures as SVG that are the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes half a second
    from matplotlib.figure import Figure


@contextmanager
def new_figure(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of this size in inches; the block must also call `to_svg`."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "segan", "font.size": 9}):
        yield Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: Figure) -> bytes:
    """The figure as a file, without a date."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()

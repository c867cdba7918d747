"""Figures as SVG that are the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes half a second
    from matplotlib.figure import Figure


def draw_svg(width: float, height: float, draw: Callable[[Figure], None]) -> bytes:
    """A figure of this size in inches, drawn by the function, as a file without a date."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "segan", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()

"""What a dashboard asks Prometheus for."""

from __future__ import annotations

import re
from typing import Any


def expressions(dashboard: dict[str, Any]) -> list[str]:
    return [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]


def metric_names(dashboard: dict[str, Any]) -> set[str]:
    """The names of all series in its expressions."""
    return {name for e in expressions(dashboard) for name in re.findall(r"\bray_[a-z_]+", e)}

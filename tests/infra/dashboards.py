"""The Grafana dashboard and its queries."""

from __future__ import annotations

import json
import re
from typing import Any

from infra.check_manifests import ROOT

DASHBOARD_FILE = ROOT / "infra/observability/grafana/segan.json"


def load_dashboard() -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(DASHBOARD_FILE.read_text())
    return dashboard


def expressions(dashboard: dict[str, Any]) -> list[str]:
    """The PromQL expressions of all panels."""
    return [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]


def metric_names(dashboard: dict[str, Any]) -> set[str]:
    """The names of the metrics in its expressions."""
    return {name for e in expressions(dashboard) for name in re.findall(r"\bray_[a-z_]+", e)}

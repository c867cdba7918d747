"""The Grafana dashboard of our figures, as a table; grafana/segan.json is made of it.

python -m infra.observability.dashboard
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD_FILE = Path(__file__).parent / "grafana" / "segan.json"
SCHEMA_VERSION = (
    42  # of dashboards, as Grafana 12 and 13 write them; older ones are migrated on loading
)
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, PANELS_PER_ROW = 8, 8, 3  # Grafana's grid is 24 wide
RUN_LEGEND = "{{study}} {{run}}"

Query = tuple[str, str]


@dataclass(frozen=True)
class Panel:
    """`queries` are (expression, legend); `unit` is one of Grafana's."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    max_value: float | None = None
    kind: str = "timeseries"


def run_query(metric: str, legend: str = RUN_LEGEND, by: str = "study, run") -> Query:
    """One line a run: for a while after a retry, its old and its new worker both count."""
    return f'max by ({by}) (ray_segan_{metric}{{study=~"$study", run=~"$run"}})', legend


def best_jaccard_query() -> Query:
    inside = 'ray_segan_best_jaccard{study=~"$study", run=~"$run"}[$__range]'
    return f"sort_desc(max by (study, run) (max_over_time({inside})))", RUN_LEGEND


def cluster_query(expression: str, legend: str) -> Query:
    return expression, legend


ROWS: dict[str, tuple[Panel, ...]] = {
    "Scores": (
        Panel(
            "Validation Jaccard",
            "At the best threshold of each validation.",
            "none",
            (run_query("jaccard"),),
            max_value=1,
        ),
        Panel(
            "Best Jaccard",
            "Of every run in the time shown, over or not.",
            "none",
            (best_jaccard_query(),),
            max_value=1,
            kind="bargauge",
        ),
        Panel("Epoch", "Where each run is.", "none", (run_query("epoch"),)),
    ),
    "Losses": (
        Panel(
            "Critic",
            "Maximised by the critic; in the paper the multi-scale L1.",
            "none",
            (run_query("critic_loss"),),
        ),
        Panel("Segmentor", "Minimised by the segmentor.", "none", (run_query("segmentor_loss"),)),
        Panel("Dice", "Whether or not it is part of the loss.", "none", (run_query("dice_loss"),)),
    ),
    "Time": (
        Panel(
            "Images a second",
            "Of all workers, over the epoch so far.",
            "suffix: images/s",
            (run_query("images_per_second"),),
        ),
        Panel(
            "Waiting for data",
            "Part of the last validated epoch, for each rank.",
            "percentunit",
            (run_query("wait_share", RUN_LEGEND + " rank {{rank}}", "study, run, rank"),),
            max_value=1,
        ),
        Panel(
            "Validation and checkpoint",
            "What the last of each took; training stands still for both.",
            "s",
            (
                run_query("validation_seconds", RUN_LEGEND + " validation"),
                run_query("checkpoint_seconds", RUN_LEGEND + " checkpoint"),
            ),
        ),
        Panel(
            "Retries",
            "Times that the worker group was started again since the job began.",
            "none",
            (run_query("retries"),),
        ),
        Panel(
            "Images seen", "Of all workers, since the first step.", "short", (run_query("samples"),)
        ),
    ),
    "Schedule": (
        Panel("k", "Steepness of the logistic output.", "none", (run_query("k"),)),
        Panel("Learning rate", "Of both optimizers.", "sci", (run_query("learning_rate"),)),
    ),
    "Cluster": (
        Panel(
            "CPU",
            "Of each node.",
            "percent",
            (cluster_query("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),),
            max_value=100,
        ),
        Panel(
            "GPU",
            "Of each GPU.",
            "percent",
            (
                cluster_query(
                    "avg by (instance, GpuIndex) (ray_node_gpus_utilization)",
                    "{{instance}} GPU {{GpuIndex}}",
                ),
            ),
            max_value=100,
        ),
        Panel(
            "GPU memory",
            "Of each GPU.",
            "bytes",
            (
                cluster_query(
                    "sum by (instance, GpuIndex) (ray_node_gram_used) * 1048576",
                    "{{instance}} GPU {{GpuIndex}}",
                ),
            ),
        ),
        Panel(
            "Memory",
            "Of each node.",
            "bytes",
            (cluster_query("sum by (instance) (ray_node_mem_used)", "{{instance}}"),),
        ),
        Panel(
            "Object store",
            "Where Ray keeps objects, and how much it may.",
            "bytes",
            (
                cluster_query("sum by (Location) (ray_object_store_memory)", "{{Location}}"),
                cluster_query('sum(ray_resources{Name="object_store_memory"})', "limit"),
            ),
        ),
        Panel(
            "CPUs and GPUs taken",
            "Logical ones, held by workers, actors and read tasks.",
            "none",
            (
                cluster_query(
                    'sum by (Name) (ray_resources{Name=~"CPU|GPU", State="USED"})', "{{Name}}"
                ),
            ),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """The whole of it, as Grafana loads it from a file."""
    return {
        "uid": "segan",
        "title": "SegAN",
        "description": "Trainings and studies of SegAN, and what they take of the cluster.",
        "tags": ["segan", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                _datasource_variable(),
                _label_variable("study"),
                _label_variable("run", 'study=~"$study"'),
            ]
        },
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        head = {"h": 1, "w": WIDTH * PANELS_PER_ROW, "x": 0, "y": top}
        panels.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": head}
        )
        for i, panel in enumerate(row):
            down, right = divmod(i, PANELS_PER_ROW)
            position = {"h": HEIGHT, "w": WIDTH, "x": right * WIDTH, "y": top + 1 + down * HEIGHT}
            panels.append({**_panel(panel), "gridPos": position})
        top += 1 + HEIGHT * -(-len(row) // PANELS_PER_ROW)
    return [{"id": number, **panel} for number, panel in enumerate(panels, 1)]


def _panel(panel: Panel) -> dict[str, Any]:
    is_bar_gauge = panel.kind == "bargauge"
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.max_value is not None:
        defaults |= {"min": 0, "max": panel.max_value}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": is_bar_gauge,
                "range": not is_bar_gauge,
            }
            for i, (expression, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": BAR_GAUGE_OPTIONS if is_bar_gauge else TIME_SERIES_OPTIONS,
    }


TIME_SERIES_OPTIONS = {
    "legend": {
        "showLegend": True,
        "displayMode": "table",
        "placement": "bottom",
        "calcs": ["lastNotNull", "max"],
    },
    "tooltip": {"mode": "multi", "sort": "desc"},
}
BAR_GAUGE_OPTIONS = {
    "orientation": "horizontal",
    "displayMode": "basic",
    "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
}


def _datasource_variable() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }


def _label_variable(label: str, selector: str = "") -> dict[str, Any]:
    """A variable of every value that a label has in the time shown."""
    query = f"label_values(ray_segan_epoch{{{selector}}}, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,  # when the time shown changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # a run outside of a study has no study
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard_json() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    DASHBOARD_FILE.write_text(dashboard_json())

"""The Grafana dashboard of our figures, as a table; grafana/segan.json is made of it.

python -m infra.observability.dashboard
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "grafana" / "segan.json"
SCHEMA = 42  # of dashboards, as Grafana 12 and 13 write them; older ones are migrated on loading
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT, IN_A_ROW = 8, 8, 3  # Grafana's grid is 24 wide
RUN = "{{study}} {{run}}"

Query = tuple[str, str]


@dataclass(frozen=True)
class Panel:
    """`queries` are (expression, legend); `unit` is one of Grafana's."""

    title: str
    what: str
    unit: str
    queries: tuple[Query, ...]
    most: float | None = None
    kind: str = "timeseries"


def of_run(figure: str, legend: str = RUN, by: str = "study, run") -> Query:
    """One line a run: for a while after a retry, its old and its new worker both count."""
    return f'max by ({by}) (ray_segan_{figure}{{study=~"$study", run=~"$run"}})', legend


def best() -> Query:
    inside = 'ray_segan_best_jaccard{study=~"$study", run=~"$run"}[$__range]'
    return f"sort_desc(max by (study, run) (max_over_time({inside})))", RUN


def of_cluster(expression: str, legend: str) -> Query:
    return expression, legend


ROWS: dict[str, tuple[Panel, ...]] = {
    "Scores": (
        Panel(
            "Validation Jaccard",
            "At the best threshold of each validation.",
            "none",
            (of_run("jaccard"),),
            most=1,
        ),
        Panel(
            "Best Jaccard",
            "Of every run in the time shown, over or not.",
            "none",
            (best(),),
            most=1,
            kind="bargauge",
        ),
        Panel("Epoch", "Where each run is.", "none", (of_run("epoch"),)),
    ),
    "Losses": (
        Panel(
            "Critic",
            "It is minimised: the critic's is minus the L1.",
            "none",
            (of_run("critic_loss"),),
        ),
        Panel("Segmentor", "Multi-scale L1 between features.", "none", (of_run("segmentor_loss"),)),
        Panel("Dice", "Whether or not it is part of the loss.", "none", (of_run("dice_loss"),)),
    ),
    "Time": (
        Panel(
            "Images a second",
            "Of all workers, over the epoch so far.",
            "suffix: images/s",
            (of_run("images_per_second"),),
        ),
        Panel(
            "Waiting for data",
            "Part of the last validated epoch, for each rank.",
            "percentunit",
            (of_run("wait_share", RUN + " rank {{rank}}", "study, run, rank"),),
            most=1,
        ),
        Panel(
            "Validation and checkpoint",
            "What the last of each took; training stands still for both.",
            "s",
            (
                of_run("validation_seconds", RUN + " validation"),
                of_run("checkpoint_seconds", RUN + " checkpoint"),
            ),
        ),
        Panel(
            "Retries",
            "Times that the worker group was started again since the job began.",
            "none",
            (of_run("retries"),),
        ),
        Panel(
            "Images seen", "Of all workers, since the first step.", "short", (of_run("samples"),)
        ),
    ),
    "Schedule": (
        Panel("k", "Steepness of the logistic output.", "none", (of_run("k"),)),
        Panel("Learning rate", "Of both optimizers.", "sci", (of_run("learning_rate"),)),
    ),
    "Cluster": (
        Panel(
            "CPU",
            "Of each node.",
            "percent",
            (of_cluster("avg by (instance) (ray_node_cpu_utilization)", "{{instance}}"),),
            most=100,
        ),
        Panel(
            "GPU",
            "Of each GPU.",
            "percent",
            (
                of_cluster(
                    "avg by (instance, GpuIndex) (ray_node_gpus_utilization)",
                    "{{instance}} GPU {{GpuIndex}}",
                ),
            ),
            most=100,
        ),
        Panel(
            "GPU memory",
            "Of each GPU.",
            "bytes",
            (
                of_cluster(
                    "sum by (instance, GpuIndex) (ray_node_gram_used) * 1048576",
                    "{{instance}} GPU {{GpuIndex}}",
                ),
            ),
        ),
        Panel(
            "Memory",
            "Of each node.",
            "bytes",
            (of_cluster("sum by (instance) (ray_node_mem_used)", "{{instance}}"),),
        ),
        Panel(
            "Object store",
            "Where Ray keeps objects, and how much it may.",
            "bytes",
            (
                of_cluster("sum by (Location) (ray_object_store_memory)", "{{Location}}"),
                of_cluster('sum(ray_resources{Name="object_store_memory"})', "limit"),
            ),
        ),
        Panel(
            "CPUs and GPUs taken",
            "Logical ones, held by workers, actors and read tasks.",
            "none",
            (
                of_cluster(
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
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_sources(), _names("study"), _names("run", 'study=~"$study"')]},
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        head = {"h": 1, "w": WIDTH * IN_A_ROW, "x": 0, "y": top}
        found.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": head}
        )
        for i, panel in enumerate(row):
            down, right = divmod(i, IN_A_ROW)
            place = {"h": HEIGHT, "w": WIDTH, "x": right * WIDTH, "y": top + 1 + down * HEIGHT}
            found.append({**_panel(panel), "gridPos": place})
        top += 1 + HEIGHT * -(-len(row) // IN_A_ROW)
    return [{"id": number, **panel} for number, panel in enumerate(found, 1)]


def _panel(panel: Panel) -> dict[str, Any]:
    bars = panel.kind == "bargauge"
    defaults: dict[str, Any] = {"unit": panel.unit}
    if panel.most is not None:
        defaults |= {"min": 0, "max": panel.most}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": bars,
                "range": not bars,
            }
            for i, (expression, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": BARS if bars else LINES,
    }


LINES = {
    "legend": {
        "showLegend": True,
        "displayMode": "table",
        "placement": "bottom",
        "calcs": ["lastNotNull", "max"],
    },
    "tooltip": {"mode": "multi", "sort": "desc"},
}
BARS = {
    "orientation": "horizontal",
    "displayMode": "basic",
    "reduceOptions": {"calcs": ["lastNotNull"], "values": False, "fields": ""},
}


def _sources() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
    }


def _names(label: str, where: str = "") -> dict[str, Any]:
    """A variable of every value that a label has in the time shown."""
    query = f"label_values(ray_segan_epoch{{{where}}}, {label})"
    return {
        "name": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,  # when the time shown changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",  # a run outside of a study has no study
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def text() -> str:
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())

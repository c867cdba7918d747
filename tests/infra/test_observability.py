"""Exported metrics, dashboard and scrape configuration agree."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.check_manifests import ROOT, render, render_command
from ray_jobs.training.metrics import MAX_TAG_LENGTH, METRICS, run_tags
from segan.training.trainer import TrainingProgress
from tests.infra.dashboards import DASHBOARD_FILE, expressions, load_dashboard, metric_names

OBSERVABILITY = ROOT / "infra/observability"


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return load_dashboard()


def test_the_dashboard_shows_exactly_the_exported_metrics(dashboard: dict[str, Any]) -> None:
    shown = {name for name in metric_names(dashboard) if name.startswith("ray_segan_")}
    assert shown == {metric.prometheus_name for metric in METRICS}


def test_the_file_is_formatted(dashboard: dict[str, Any]) -> None:
    assert DASHBOARD_FILE.read_text() == json.dumps(dashboard, indent=2) + "\n"


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_has_a_description_and_a_unit(metric: Any) -> None:
    assert metric.description[0].isupper()
    assert metric.unit


def test_metrics_that_are_no_field_of_the_progress() -> None:
    """These are in a validation's metrics, or come from the coordinator."""
    reported = {"data_wait_fraction", "stage_seconds", "checkpoint_seconds", "restarts"}
    fields = {field.name for field in dataclasses.fields(TrainingProgress)}
    assert {metric.name for metric in METRICS} - fields == reported


def test_panels_have_units_legends_and_distinct_positions(dashboard: dict[str, Any]) -> None:
    positions, ids = [], []
    for panel in dashboard["panels"]:
        ids.append(panel["id"])
        positions.append((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert all(target["legendFormat"] for target in panel["targets"])
    assert len(set(positions)) == len(positions)
    assert len(set(ids)) == len(ids)


def test_variables_are_those_that_the_expressions_use(dashboard: dict[str, Any]) -> None:
    names = {variable["name"] for variable in dashboard["templating"]["list"]} - {"datasource"}
    used = {name for e in expressions(dashboard) for name in re.findall(r"\$([a-z]+)", e)}
    assert used == names == {"study", "run"}


@pytest.mark.parametrize(
    ("uri", "tags"),
    [
        ("s3://bucket/runs/first", ("first", "", "")),
        ("first", ("first", "", "")),
        ("s3://b/studies/lr/trials/trial_007", ("trial_007", "lr", "trial_007")),
        (f"/runs/{'x' * 200}", ("x" * MAX_TAG_LENGTH, "", "")),
    ],
)
def test_the_tags_of_a_run(uri: str, tags: tuple[str, str, str]) -> None:
    assert tuple(run_tags(uri).values()) == tags


def test_prometheus_reads_the_target_list_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())["scrape_configs"]
    (found,) = job["file_sd_configs"]
    assert [Path(file).name for file in found["files"]] == [PROMETHEUS_SERVICE_DISCOVERY_FILE]


@pytest.mark.skipif(not render_command(), reason="neither kustomize nor kubectl is installed")
def test_on_kubernetes_pods_are_found_and_the_dashboard_is_installed(
    dashboard: dict[str, Any],
) -> None:
    found = {resource["kind"]: resource for resource in render(OBSERVABILITY)}
    policy = next(r for r in render(ROOT / "infra/kuberay/small") if r["kind"] == "NetworkPolicy")
    monitor, config = found["PodMonitor"], found["ConfigMap"]
    assert monitor["metadata"]["namespace"] == policy["metadata"]["namespace"]
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    assert json.loads(config["data"]["segan.json"]) == dashboard

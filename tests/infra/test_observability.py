"""Figures, dashboard and scrape config agree with each other by name."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.check_manifests import ROOT, render, render_command
from infra.observability.dashboard import DASHBOARD_FILE, dashboard, dashboard_json
from ray_jobs.training.metrics import MAX_TAG_LENGTH, METRICS, run_tags
from segan.training.trainer import TrainingProgress
from tests.infra.dashboards import expressions, metric_names

OBSERVABILITY = ROOT / "infra/observability"


def test_the_file_is_what_the_table_gives() -> None:
    assert DASHBOARD_FILE.read_text() == dashboard_json(), (
        "python -m infra.observability.dashboard writes it"
    )


def test_the_dashboard_draws_every_figure_and_no_other() -> None:
    drawn = {name for name in metric_names(dashboard()) if name.startswith("ray_segan_")}
    assert drawn == {figure.prometheus_name for figure in METRICS}


@pytest.mark.parametrize("figure", METRICS, ids=lambda figure: figure.name)
def test_a_figure_says_what_it_is_in_what_unit(figure: Any) -> None:
    assert figure.description[0].isupper()
    assert figure.unit


def test_what_a_status_has_of_figures_are_its_fields() -> None:
    """The others come with a validation's report, or from the board."""
    reported = {"data_wait_fraction", "validation_seconds", "checkpoint_seconds", "restarts"}
    fields = {field.name for field in dataclasses.fields(TrainingProgress)}
    assert {figure.name for figure in METRICS} - fields == reported


def test_panels_have_units_legends_and_places_of_their_own() -> None:
    places = []
    for panel in dashboard()["panels"]:
        places.append((panel["gridPos"]["x"], panel["gridPos"]["y"]))
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert all(target["legendFormat"] for target in panel["targets"])
    assert len(set(places)) == len(places)


def test_variables_are_those_that_the_expressions_use() -> None:
    names = {variable["name"] for variable in dashboard()["templating"]["list"]} - {"datasource"}
    used = {name for e in expressions(dashboard()) for name in re.findall(r"\$([a-z]+)", e)}
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


def test_prometheus_reads_the_list_that_ray_keeps() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())["scrape_configs"]
    (found,) = job["file_sd_configs"]
    assert [Path(file).name for file in found["files"]] == [PROMETHEUS_SERVICE_DISCOVERY_FILE]


@pytest.mark.skipif(not render_command(), reason="neither kustomize nor kubectl is here")
def test_beside_kuberay_pods_are_found_and_the_dashboard_comes_along() -> None:
    found = {resource["kind"]: resource for resource in render(OBSERVABILITY)}
    policy = next(r for r in render(ROOT / "infra/kuberay/small") if r["kind"] == "NetworkPolicy")
    monitor, config = found["PodMonitor"], found["ConfigMap"]
    assert monitor["metadata"]["namespace"] == policy["metadata"]["namespace"]
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    assert json.loads(config["data"]["segan.json"]) == dashboard()

"""A training's metrics at the targets that Prometheus scrapes."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from infra.local.cluster import RayCluster
from ray_jobs.training.driver import train
from ray_jobs.training.metrics import METRICS
from ray_jobs.tuning.scheduler import DecisionPublisher, decision_publisher
from segan.config import Config
from segan.runs.run import Run
from tests.cluster.test_train import kill_worker
from tests.infra.dashboards import load_dashboard, metric_names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

GPU_METRICS = {"ray_node_gpus_utilization", "ray_node_gram_used"}
STUDY, TRIAL = "watched", "trial_000"
Samples = dict[str, list[tuple[dict[str, str], float]]]


def scrape(cluster: RayCluster) -> Samples:
    """All samples of all targets in the list that Ray writes, without a token.

    Of segan's metrics only the study's: those of an earlier test remain for some seconds.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    found: Samples = {}
    for group in json.loads((cluster.folder / "prom_metrics_service_discovery.json").read_text()):
        for target in group["targets"]:
            with direct.open(f"http://{target}/metrics", timeout=30) as response:
                text = response.read().decode()
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    if sample.labels.get("study", STUDY) == STUDY:
                        found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def wait_for_start(cluster: RayCluster, restarts: int, expected: set[str]) -> Samples:
    """The samples once this start of the workers has validated and earlier ones are gone."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        found = scrape(cluster)
        starts = [value for _, value in found.get("ray_segan_restarts", [])]
        ranks = [labels["rank"] for labels, _ in found.get("ray_segan_data_wait_fraction", [])]
        if starts == [restarts] and sorted(ranks) == ["0", "1"] and expected <= found.keys():
            return found
        time.sleep(1)
    raise TimeoutError(f"missing {expected - found.keys()}, ranks {ranks}, starts {starts}")


def metric_values(found: Samples) -> dict[str, Any]:
    """The values of segan's metrics by name; of metrics per rank, those of rank 0.

    That of a metric with a label is a dict.
    """
    values: dict[str, Any] = {}
    for metric in METRICS:
        for labels, value in found[metric.prometheus_name]:
            if metric.label:
                values.setdefault(metric.name, {})[labels[metric.label]] = value
            elif labels.get("rank", "0") == "0":
                values[metric.name] = value
    return values


@pytest.mark.slow
def test_prometheus_finds_all_metrics_of_the_dashboard(
    bucket: str, make_config: Callable[..., Config], ray_session: RayCluster
) -> None:
    """After each validation the workers wait for a decision, which is made after the scrape."""
    run = Run(f"{bucket}/studies/{STUDY}/trials/{TRIAL}")
    config = make_config("cluster.workers=2", "training.epochs=2", "training.log_every_steps=1")
    expected = metric_names(load_dashboard()) - (
        set() if ray.cluster_resources().get("GPU") else GPU_METRICS
    )

    def watch(publisher: DecisionPublisher) -> tuple[Samples, Samples]:
        try:
            first = wait_for_start(ray_session, 0, expected)
            kill_worker()
            return first, wait_for_start(ray_session, 1, expected)
        finally:
            for epoch in (1, 2):
                publisher.publish(TRIAL, epoch, True)

    with decision_publisher() as publisher, ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch, publisher)
        train(config, run, lambda status: None, {"trial": TRIAL, "decisions": publisher.actor})
    first, second = watching.result()

    ((labels, _),) = first["ray_segan_jaccard"]
    assert (labels["run"], labels["trial"]) == (TRIAL, TRIAL)
    lines = [line for line in run.metrics() if line["kind"] == "epoch"]
    steps = [line for line in run.metrics() if line["kind"] == "step"]
    for line, seen in zip(lines, map(metric_values, (first, second)), strict=True):
        assert seen.pop("stage_seconds") == pytest.approx(line["stage_seconds"])
        same = line.keys() & seen.keys()
        assert {"jaccard", "critic_loss", "data_wait_fraction", "images_per_second", "k"} <= same
        assert {name: seen[name] for name in same} == pytest.approx({n: line[n] for n in same})
        rates = [step["learning_rate"] for step in steps if step["samples"] == line["samples"]]
        assert [seen["learning_rate"]] == pytest.approx(rates)
        assert seen["checkpoint_seconds"] > 0
    assert metric_values(second)["best_jaccard"] == max(line["jaccard"] for line in lines)

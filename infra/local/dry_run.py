"""Shows where a run's workers would be placed on a cluster of GPUs, without a GPU or a training.

    python -m infra.local.dry_run --nodes 4 --gpus 2 cluster.workers=8 cluster.gpus_per_worker=1

Starts a Ray head and nodes that claim to have these GPUs, in network namespaces of this machine,
and reserves the workers' placement group as Ray Train does. Exit code 2 if the run does not fit.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from infra.local.cluster import ray_cluster, ray_node
from infra.local.namespaces import namespaces
from segan.cli.console import echo, print_table
from segan.config import Config, load_config
from segan.errors import SeganError

PLACEMENT_TIMEOUT_S = 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.dry_run", description=__doc__)
    parser.add_argument("--nodes", type=int, default=4, help="number of nodes besides the head")
    parser.add_argument("--gpus", type=int, default=2, help="per node")
    parser.add_argument("--cpus", type=int, default=8, help="per node")
    parser.add_argument("--config", help="YAML file or shipped name; default: the paper's")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, arguments.overrides)
        with tempfile.TemporaryDirectory(prefix="dry-run-") as folder, ExitStack() as stack:
            names = ["head", *map(str, range(arguments.nodes))]
            head, *nodes = stack.enter_context(namespaces(names))
            stack.enter_context(head.enter())
            cluster = stack.enter_context(ray_cluster(Path(folder, "head"), 0, {}, ip=head.ip))
            for node in nodes:
                with node.enter():
                    node_folder = Path(folder, node.name)
                    stack.enter_context(
                        ray_node(cluster, node_folder, arguments.cpus, {}, node.ip, arguments.gpus)
                    )
            os.environ.update(cluster.environment)
            _print_placement(config, arguments.nodes)
    except SeganError as error:
        echo(f"dry_run: {error}")
        return error.exit_code
    return 0


def _print_placement(config: Config, num_nodes: int) -> None:
    import ray  # reads the environment when it is imported
    from ray.util import placement_group, placement_group_table

    from ray_jobs.cluster.capacity import max_concurrent_runs, resolve_cluster_device
    from ray_jobs.cluster.connect import connect
    from ray_jobs.training.driver import scaling_config

    connect()
    try:
        cluster = resolve_cluster_device(config.cluster)
        capacity = max_concurrent_runs(cluster)
        scaling = scaling_config(cluster)
        bundles = [dict(scaling.resources_per_worker) for _ in range(scaling.max_workers)]
        group = placement_group(bundles, strategy=scaling.placement_strategy)
        ray.get(group.ready(), timeout=PLACEMENT_TIMEOUT_S)
        workers = Counter(placement_group_table(group)["bundles_to_node_id"].values())
    finally:
        ray.shutdown()
    counts = [count for _, count in workers.most_common()] + [0] * (num_nodes - len(workers))
    rows = [[f"node {number}", count] for number, count in enumerate(counts, 1)]
    print_table("placement of the workers", ["", "workers"], rows)
    echo(f"runs of this size that fit the cluster at once: {capacity}")


if __name__ == "__main__":
    sys.exit(main())

"""Where the workers of a run would lie on a cluster of GPUs, without a GPU and without training.

    python -m infra.local.dry_run --nodes 4 --gpus 2 cluster.workers=8 cluster.gpus_per_worker=1

Starts a Ray head that takes no work and nodes that say they have these GPUs, in network namespaces
of this machine, and asks Ray for the workers' placement as Ray Train would. Exit code 2 where the
run does not fit.
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
    parser.add_argument("--nodes", type=int, default=4, help="beside the head")
    parser.add_argument("--gpus", type=int, default=2, help="of each node")
    parser.add_argument("--cpus", type=int, default=8, help="of each node")
    parser.add_argument("--config", type=Path, help="YAML file; the paper's values else")
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
            _print_placement(config)
    except SeganError as error:
        echo(f"dry_run: {error}")
        return error.exit_code
    return 0


def _print_placement(config: Config) -> None:
    import ray  # reads the environment

    from ray_jobs.cluster.capacity import max_concurrent_runs, num_worker_nodes
    from ray_jobs.cluster.connect import connect

    connect()
    try:
        capacity = max_concurrent_runs(config.cluster)
        on_node = _workers_per_node(config)
        rows = [[f"node {n}", workers] for n, (_, workers) in enumerate(on_node.most_common(), 1)]
        rows += [[f"node {n}", 0] for n in range(len(rows) + 1, num_worker_nodes() + 1)]
        print_table("where the workers would lie", ["", "workers"], rows)
        echo(f"runs of this size that the cluster holds at once: {capacity}")
    finally:
        ray.shutdown()


def _workers_per_node(config: Config) -> Counter[str]:
    """Workers by node: of the placement group that Ray Train asks for."""
    import ray
    from ray.util import placement_group, placement_group_table, remove_placement_group

    from ray_jobs.training.driver import scaling_config

    group_config = scaling_config(config)
    bundles = [dict(group_config.resources_per_worker) for _ in range(group_config.max_workers)]
    group = placement_group(bundles, strategy=group_config.placement_strategy)
    ray.get(group.ready(), timeout=PLACEMENT_TIMEOUT_S)
    nodes = placement_group_table(group)["bundles_to_node_id"]
    remove_placement_group(group)
    return Counter(nodes.values())


if __name__ == "__main__":
    sys.exit(main())

"""Where the workers of a run would lie on a cluster of GPUs, without a GPU and without training.

    python -m infra.local.rehearse --nodes 4 --gpus 2 cluster.workers=8 cluster.gpus_per_worker=1

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
from segan.config import Config, load_config
from segan.errors import SeganError
from segan.terminal import say, table

PLACE_SECONDS = 60


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local.rehearse", description=__doc__)
    parser.add_argument("--nodes", type=int, default=4, help="beside the head")
    parser.add_argument("--gpus", type=int, default=2, help="of each node")
    parser.add_argument("--cpus", type=int, default=8, help="of each node")
    parser.add_argument("--config", type=Path, help="YAML file; the paper's values else")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    words = parser.parse_args()
    try:
        config = load_config(words.config, words.overrides)
        with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder, ExitStack() as stack:
            names = ["head", *map(str, range(words.nodes))]
            head, *nodes = stack.enter_context(namespaces(names))
            stack.enter_context(head.inside())
            cluster = stack.enter_context(ray_cluster(Path(folder, "head"), 0, {}, ip=head.ip))
            for node in nodes:
                with node.inside():
                    place = Path(folder, node.name)
                    stack.enter_context(
                        ray_node(cluster, place, words.cpus, {}, node.ip, words.gpus)
                    )
            os.environ.update(cluster.environment)
            _show(config)
    except SeganError as error:
        say(f"rehearse: {error}")
        return error.exit_code
    return 0


def _show(config: Config) -> None:
    import ray  # reads the environment

    from ray_jobs.capacity import nodes_with_work, runs_at_once
    from ray_jobs.cluster import connect

    connect()
    try:
        held = runs_at_once(config.cluster)
        on_node = _placed(config)
        rows = [[f"node {n}", workers] for n, (_, workers) in enumerate(on_node.most_common(), 1)]
        rows += [[f"node {n}", 0] for n in range(len(rows) + 1, nodes_with_work() + 1)]
        table("where the workers would lie", ["", "workers"], rows)
        say(f"runs of this size that the cluster holds at once: {held}")
    finally:
        ray.shutdown()


def _placed(config: Config) -> Counter[str]:
    """Workers by node: of the placement group that Ray Train asks for."""
    import ray
    from ray.util import placement_group, placement_group_table, remove_placement_group

    from ray_jobs.train import scaling

    wanted = scaling(config)
    bundles = [dict(wanted.resources_per_worker) for _ in range(wanted.max_workers)]
    group = placement_group(bundles, strategy=wanted.placement_strategy)
    ray.get(group.ready(), timeout=PLACE_SECONDS)
    nodes = placement_group_table(group)["bundles_to_node_id"]
    remove_placement_group(group)
    return Counter(nodes.values())


if __name__ == "__main__":
    sys.exit(main())

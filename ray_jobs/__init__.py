"""Everything that runs on Ray."""

import os

# Of a cluster that is this machine alone; all its drivers must agree on them.
SINGLE_NODE_ENV = {
    # Ray listens on all addresses of the machine, even for a cluster that `ray.init()` starts,
    # except where it assumes that this system supports single-node clusters only. It reads the
    # variable when it is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A process of each worker group, which looks for nodes that are about to be taken away.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

if not os.environ.get("RAY_ADDRESS"):
    for name, value in SINGLE_NODE_ENV.items():
        os.environ.setdefault(name, value)

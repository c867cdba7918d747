"""Everything that runs on Ray."""

import os

# Ray listens on all addresses of the machine, even for a cluster that `ray.init()` starts, except
# where it assumes that this system supports single-node clusters only. Ray reads the variable when
# it is imported; all nodes and drivers of a cluster must agree on it.
LOOPBACK_ENV = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Of a cluster that is this machine alone: no process of each worker group has to look for nodes
# that are about to be taken away. Not at import: a cluster that Ray has recorded may have others.
SINGLE_NODE_ENV = LOOPBACK_ENV | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

if not os.environ.get("RAY_ADDRESS"):
    for name, value in LOOPBACK_ENV.items():
        os.environ.setdefault(name, value)

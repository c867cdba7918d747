"""The undocumented parts of Ray that this project uses, each with the reason.

Ray may move any of them in any release; tests/cluster/test_ray_internals.py imports each by itself.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RayInternal:
    """An attribute of one of Ray's modules, and why the documented API does not suffice."""

    module: str
    name: str
    reason: str

    def load(self) -> Any:
        """Imports the module and returns the attribute.

        Raises:
            ImportError, AttributeError: the installed version of Ray does not have it.
        """
        return getattr(importlib.import_module(self.module), self.name)


AUTOSCALING_COORDINATOR = RayInternal(
    "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator",
    "get_or_create_autoscaling_coordinator",
    "Ray Train sizes an elastic worker group by this actor's list of nodes, which is refreshed "
    "every 20 s only; after a node loss it is refreshed at once",
)
EXECUTION_CALLBACK = RayInternal(
    "ray.data._internal.execution.execution_callback",
    "ExecutionCallback",
    "the base class of hooks into Ray Data's scheduling loop, which busy-waits while its output "
    "is full",
)
TRAIN_CONTEXT = RayInternal(
    "ray.train.v2._internal.execution.context",
    "get_train_context",
    "the notice that a worker's node is about to be preempted is in this context only",
)
TUNE_PROPAGATED_VARIABLES = RayInternal(
    "ray.tune.execution.class_cache",
    "ENV_VARS_TO_PROPAGATE",
    "Tune copies these variables, S3 credentials among them, into each trial's runtime "
    "environment, which Ray logs and shows in its dashboard",
)
SERVE_REPLICA = RayInternal(
    "ray.serve._private",
    "replica",
    "its add_port_to_grpc_server is replaced: a replica's gRPC port listens on all addresses, "
    "without authentication, and unpickles what it receives",
)
TORCH_CONFIG = RayInternal(
    "ray.train.torch",
    "config",
    "torch's rendezvous listens on every address; its backend is replaced by one that uses a file",
)
RECORDED_ADDRESS = RayInternal(
    "ray._private.utils",
    "read_ray_address",
    "the address of the Ray cluster that was last started on this machine",
)
DASHBOARD_ADDRESS = RayInternal(
    "ray.dashboard.utils",
    "get_address_for_submission_client",
    "finds the dashboard of a cluster as `ray job submit` does",
)
AUTH_HEADERS = RayInternal(
    "ray._private.authentication.http_token_authentication",
    "get_auth_headers_if_auth_enabled",
    "the HTTP headers with which Ray's own clients send the token",
)
WORKING_DIR_EXCLUDES = RayInternal(
    "ray._private.ray_constants",
    "get_runtime_env_default_excludes",
    "what `ray job submit --working-dir` leaves out",
)
CREATE_PACKAGE = RayInternal(
    "ray._private.runtime_env.packaging",
    "create_package",
    "packs a working directory as `ray job submit --working-dir` does",
)

INTERNALS = [value for value in globals().values() if isinstance(value, RayInternal)]

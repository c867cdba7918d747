"""The process group of a training, without open ports where all workers are on one node.

torch's default rendezvous is a server that listens on every address, without a token: whoever
reaches it can stop or redirect a training. Workers on one node meet in a file instead, and their
collectives use the loopback interface. Workers on several nodes need the server, which is why a
cluster's ports belong inside its network.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig

from ray_jobs.cluster.ray_internals import TORCH_CONFIG
from segan.training.distributed import use_loopback

_torch_config = TORCH_CONFIG.load()
_TorchBackend: Any = _torch_config._TorchBackend


class _FileBackend(_TorchBackend):
    """Ray's own backend, but with a file for the rendezvous of workers on one node."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(set(worker_group.execute(_node_id))) > 1:
            super().on_start(worker_group, backend_config)
            return
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        self._file: str = worker_group.execute_single(0, _make_rendezvous_file)
        worker_group.execute(use_loopback)
        worker_group.execute(_torch_config._set_torch_distributed_env_vars)
        options = {
            "backend": backend_config.backend or ("nccl" if gpus else "gloo"),
            "world_size": len(worker_group),
            "init_method": f"file://{self._file}",
            "timeout_s": backend_config.timeout_s,
        }
        set_up = _torch_config._setup_torch_process_group
        ray.get(
            [
                worker_group.execute_single_async(rank, set_up, world_rank=rank, **options)
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_shutdown(worker_group, backend_config)
        if file := getattr(self, "_file", ""):
            folder = str(Path(file).parent)
            # Not longer: the worker may be lost or frozen, and then the folder stays.
            ray.wait([worker_group.execute_single_async(0, _remove_folder, folder)], timeout=5)


@dataclass
class FileRendezvousConfig(TorchConfig):
    """Ray's TorchConfig with the backend of this module."""

    @property
    def backend_cls(self) -> type[_FileBackend]:
        return _FileBackend


def _node_id() -> str:
    node_id: str = ray.get_runtime_context().get_node_id()
    return node_id


def _make_rendezvous_file() -> str:
    """The name of a file that does not exist yet, in a new folder of this user alone."""
    return os.path.join(tempfile.mkdtemp(prefix="segan-rendezvous-"), "file")


def _remove_folder(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)

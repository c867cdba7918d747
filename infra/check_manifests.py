"""Whether what is under infra/ fits together: images, sizes, rights, and the jobs it starts.

    python -m infra.check_manifests

One line on stderr for each mistake, with its file and field; exit code 1 if there is any. Needs
`kustomize` or `kubectl`, and no cluster.
"""

from __future__ import annotations

import logging
import math
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segan.config import ClusterConfig, load_config
from segan.errors import UsageError

ROOT = Path(__file__).parent.parent
KUBERAY = Path("infra/kuberay")
AWS = "infra/aws/cluster.yaml"
DOCKERFILE = "infra/docker/Dockerfile"
RUNTIME_ENV = "ray_jobs/runtime_env.yaml"
GUIDE = "docs/cluster.md"

GPU = "nvidia.com/gpu"
CPUS_FOR_DATA = 1  # as ray_jobs.cluster.capacity keeps
OBJECT_STORE_FRACTION = 0.3  # of a node's memory: what Ray takes of /dev/shm
UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")
UNITS = {"m": 1e-3, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

Tree = dict[str, Any]


@dataclass
class Deployment:
    """Everything under infra/ as it would be applied."""

    kuberay: dict[str, list[Tree]]  # the resources of each overlay and job, by its folder
    aws: Tree
    runtime_env: Tree
    dockerfile: str
    cluster_guide: str
    working_dir_files: list[str]  # files of a job's working directory
    ray_version: str  # the version in constraints.txt


def load_deployment(root: Path = ROOT) -> Deployment:
    """Reads and renders the files of a repository."""
    overlays = [KUBERAY / "small", KUBERAY / "large", KUBERAY / "service"]
    overlays += sorted(path.relative_to(root) for path in (root / KUBERAY / "jobs").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        uploaded = zipfile.ZipFile(
            package_working_dir(root, Path(folder) / "working_dir.zip")
        ).namelist()
    (ray,) = re.findall(r"^ray==(.+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    return Deployment(
        kuberay={str(overlay): render(root / overlay) for overlay in overlays},
        aws=yaml.safe_load((root / AWS).read_text()),
        runtime_env=yaml.safe_load((root / RUNTIME_ENV).read_text()),
        dockerfile=(root / DOCKERFILE).read_text(),
        cluster_guide=(root / GUIDE).read_text(),
        working_dir_files=uploaded,
        ray_version=ray,
    )


def render_command() -> list[str]:
    """The command that renders a kustomization; empty where none is installed."""
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    return [kubectl, "kustomize"] if (kubectl := shutil.which("kubectl")) else []


def render(folder: Path) -> list[Tree]:
    """The resources of a kustomization."""
    if not (command := render_command()):
        raise UsageError("neither kustomize nor kubectl is on the PATH; install one of them")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{folder}: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def package_working_dir(root: Path, target: Path) -> Path:
    """The working directory of a job, zipped as `ray job submit` does."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    excludes = get_runtime_env_default_excludes()
    logger = logging.getLogger(__name__)
    create_package(str(root), target, include_gitignore=True, excludes=excludes, logger=logger)
    return target


def find_problems(deployment: Deployment, root: Path = ROOT) -> list[str]:
    """What does not fit, one line each, with file and field; nothing if all is well."""
    found = [*_check_runtime_env(deployment), *_check_image(deployment), *_check_aws(deployment)]
    for where, resources in deployment.kuberay.items():
        for resource in resources:
            path = f"{where}: {resource['kind']}"
            if resource["kind"] == "RayCluster":
                found += _check_cluster(f"{path} spec", resource["spec"], resources, deployment)
            if resource["kind"] == "RayJob":
                spec = resource["spec"]
                inner = f"{path} spec.rayClusterSpec"
                found += _check_cluster(inner, spec["rayClusterSpec"], resources, deployment)
                found += _check_job(f"{path} spec", spec, deployment, root)
            if resource["kind"] == "RayService":
                spec = resource["spec"]
                inner = f"{path} spec.rayClusterConfig"
                found += _check_cluster(inner, spec["rayClusterConfig"], resources, deployment)
                found += _check_service(f"{path} spec", spec, deployment)
    return found


def _check_cluster(
    where: str, spec: Tree, resources: list[Tree], deployment: Deployment
) -> Iterator[str]:
    head = spec["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield f'{where}.headGroupSpec.rayStartParams.num-cpus: expected "0": the head takes no work'
    auth = spec.get("authOptions", {})
    if auth.get("mode") != "token" or "secretName" not in auth:
        yield f"{where}.authOptions: expected mode token and a secretName, found {auth}"
    if spec.get("rayVersion") != deployment.ray_version:
        yield (
            f"{where}.rayVersion: {spec.get('rayVersion')}, constraints.txt has "
            f"{deployment.ray_version}"
        )
    if spec.get("enableInTreeAutoscaling"):
        options = spec.get("autoscalerOptions", {})
        if options.get("version") != "v2":
            yield f"{where}.autoscalerOptions.version: expected v2"
        if options.get("securityContext") != UNPRIVILEGED:
            yield f"{where}.autoscalerOptions.securityContext: expected {UNPRIVILEGED}"
    if not any(r["kind"] == "NetworkPolicy" for r in resources):
        yield f"{where}: no NetworkPolicy beside it; Ray's ports are for Ray's pods"
    for name in [auth.get("secretName"), *_secret_names(spec)]:
        if name and f"create secret generic {name} " not in deployment.cluster_guide:
            yield f"{where}: secret {name}: {GUIDE} does not say how to make it"
    yield from _check_pod(f"{where}.headGroupSpec", head, resources, deployment)
    for index, group in enumerate(spec["workerGroupSpecs"]):
        path = f"{where}.workerGroupSpecs[{index}]"
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{path}.replicas: expected minReplicas <= replicas <= maxReplicas"
        yield from _check_pod(path, group, resources, deployment)


def _check_pod(
    path: str, group: Tree, resources: list[Tree], deployment: Deployment
) -> Iterator[str]:
    spec = group["template"]["spec"]
    path = f"{path}.template.spec"
    context = spec.get("securityContext", {})
    if not (context.get("runAsNonRoot") and context.get("runAsUser")):
        yield f"{path}.securityContext: expected runAsNonRoot and a runAsUser, found {context}"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{path}.securityContext.seccompProfile: expected RuntimeDefault"
    accounts = [r["metadata"]["name"] for r in resources if r["kind"] == "ServiceAccount"]
    if spec.get("serviceAccountName") not in accounts:
        yield f"{path}.serviceAccountName: expected one of {accounts}"
    shared = {volume["name"]: volume.get("emptyDir", {}) for volume in spec.get("volumes", [])}
    for index, container in enumerate(spec["containers"]):
        at = f"{path}.containers[{index}]"
        if container.get("securityContext") != UNPRIVILEGED:
            yield f"{at}.securityContext: expected {UNPRIVILEGED}"
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        if limits != requests:
            yield f"{at}.resources: limits {limits} and requests {requests} differ"
        kind = "gpu" if GPU in limits else "cpu"
        if not container["image"].endswith(f"/segan:{deployment.ray_version}-{kind}"):
            yield (
                f"{at}.image: {container['image']}, expected "
                f".../segan:{deployment.ray_version}-{kind}"
            )
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{at}.env {variable['name']}: a key in clear; take it from a Secret"
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        memory = shared.get(mounts.get("/dev/shm", ""), {})  # noqa: S108
        least = OBJECT_STORE_FRACTION * quantity(limits["memory"])
        if memory.get("medium") != "Memory" or quantity(memory.get("sizeLimit", 0)) < least:
            yield f"{at}: /dev/shm: expected a Memory volume of {least / 2**30:.1f}Gi or more"


def _check_job(where: str, spec: Tree, deployment: Deployment, root: Path) -> Iterator[str]:
    if not spec.get("shutdownAfterJobFinishes"):
        yield f"{where}.shutdownAfterJobFinishes: expected true: an idle cluster costs"
    for field in ("activeDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimit"):
        if not spec.get(field):
            yield f"{where}.{field}: expected a positive number"
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    variables = environment.get("env_vars", {})
    if not re.fullmatch(r"s3://.+\.zip", environment.get("working_dir", "")):
        yield f"{where}.runtimeEnvYAML working_dir: expected a zip in the bucket"
    for name in filter(SECRET_NAME.search, variables):
        yield f"{where}.runtimeEnvYAML env_vars.{name}: keys have no place here"
    if not variables.items() >= deployment.runtime_env["env_vars"].items():
        yield f"{where}.runtimeEnvYAML env_vars: not all that {RUNTIME_ENV} has"
    path = f"{where}.entrypoint"
    module, config, overrides = _parse_entrypoint(spec["entrypoint"])
    if module is None:
        yield f"{path}: expected python -m ray_jobs.JOB, found {spec['entrypoint']!r}"
        return
    files = [f"{module.replace('.', '/')}.py", *([config] if config else [])]
    missing = [file for file in files if file not in deployment.working_dir_files]
    for file in missing:
        yield f"{path}: {file}: not in the working directory (.rayignore)"
    if missing:
        return
    try:
        wanted = load_config(root / config if config else None, overrides).cluster
    except UsageError as error:
        yield f"{path}: {error}"
        return
    yield from _check_capacity(path, wanted, spec["rayClusterSpec"]["workerGroupSpecs"])


def _check_capacity(where: str, config: ClusterConfig, groups: list[Tree]) -> Iterator[str]:
    """A job counts what is there when it starts, and with wait_seconds what may come besides."""
    replicas = "maxReplicas" if config.resource_timeout_s else "minReplicas"
    for name, amount, reserved in (
        (GPU, config.gpus_per_worker, 0),
        ("cpu", config.cpus_per_worker, CPUS_FOR_DATA),
    ):
        available, slots = 0.0, 0
        for group in groups:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            node = quantity(limits.get(name, 0))
            available += group[replicas] * node
            slots += group[replicas] * (math.floor(node / amount) if amount else config.workers)
        required = config.workers * amount + reserved
        if required > available or slots < config.workers:
            yield (
                f"{where}: {config.workers} workers of {amount:g} {name} and {reserved} for "
                f"reading data "
                f"need {required:g}, {replicas} of the worker groups hold {available:g}"
            )


def _check_service(where: str, spec: Tree, deployment: Deployment) -> Iterator[str]:
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    cluster, path = spec["rayClusterConfig"], f"{where}.serveConfigV2"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container, *_) = group["template"]["spec"]["containers"]
        if "SEGAN_SERVE_TOKEN" not in [variable["name"] for variable in container.get("env", [])]:
            yield f"{where}: {container['name']}: expected SEGAN_SERVE_TOKEN from a Secret"
    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    except ValidationError as error:
        yield f"{path}: {error}"
        return
    for application in config.applications:
        file = f"{application.import_path.split(':')[0].replace('.', '/')}.py"
        if file not in deployment.working_dir_files:
            yield f"{path}: {file}: not in the working directory (.rayignore)"


def _check_runtime_env(deployment: Deployment) -> Iterator[str]:
    for name in filter(SECRET_NAME.search, deployment.runtime_env["env_vars"]):
        yield f"{RUNTIME_ENV}: env_vars.{name}: keys have no place here"
    if RUNTIME_ENV not in deployment.working_dir_files:
        yield f".rayignore: {RUNTIME_ENV} is not in the working directory"


def _check_image(deployment: Deployment) -> Iterator[str]:
    if not re.search(
        rf"^ARG BASE=rayproject/ray:{re.escape(deployment.ray_version)}-",
        deployment.dockerfile,
        re.M,
    ):
        yield (
            f"{DOCKERFILE}: ARG BASE: expected Ray {deployment.ray_version}, as in constraints.txt"
        )
    users = re.findall(r"^USER (.+)$", deployment.dockerfile, re.MULTILINE)
    if not users or users[-1] in ("root", "0"):
        yield f"{DOCKERFILE}: USER: expected one that is not root"
    if "RAY_AUTH_MODE=token" not in deployment.dockerfile:
        yield f"{DOCKERFILE}: ENV RAY_AUTH_MODE: expected token"


def _check_aws(deployment: Deployment) -> Iterator[str]:
    config = deployment.aws
    if not config["docker"]["image"].endswith(f"/segan:{deployment.ray_version}-gpu"):
        yield f"{AWS}: docker.image: expected .../segan:{deployment.ray_version}-gpu"
    if "--env RAY_AUTH_MODE=token" not in config["docker"]["run_options"]:
        yield f"{AWS}: docker.run_options: expected --env RAY_AUTH_MODE=token"
    if "/home/ray/.ray/auth_token" not in config.get("file_mounts", {}):
        yield f"{AWS}: file_mounts: the token is missing"
    head, types = config["head_node_type"], config["available_node_types"]
    start = " ".join(config["head_start_ray_commands"])
    if types[head]["resources"].get("CPU") != 0 or "--num-cpus=0" not in start:
        yield f"{AWS}: head: expected resources CPU 0 and --num-cpus=0: the head takes no work"
    if "--dashboard-host=127.0.0.1" not in start:
        yield f"{AWS}: head_start_ray_commands: expected --dashboard-host=127.0.0.1"
    for name, node in types.items():
        at, machine = f"{AWS}: available_node_types.{name}.node_config", node["node_config"]
        for field in ("SecurityGroupIds", "IamInstanceProfile", "ImageId"):
            if not machine.get(field):
                yield f"{at}.{field}: missing"
        if machine.get("MetadataOptions") != {"HttpTokens": "required"}:
            yield f"{at}.MetadataOptions.HttpTokens: expected required"
        if name != head and machine.get("InstanceMarketOptions") != {"MarketType": "spot"}:
            yield f"{at}.InstanceMarketOptions: expected spot"


def quantity(value: str | float) -> float:
    """A Kubernetes quantity as a number: 500m, 28Gi."""
    match = re.fullmatch(r"([0-9.]+)(m|[KMGT]i|)", str(value))
    assert match, value
    return float(match[1]) * UNITS[match[2]]


def _secret_names(tree: Any) -> Iterator[str]:
    """Names of the secrets that a tree refers to."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("secretRef", "secretKeyRef"):
                yield value["name"]
            yield from _secret_names(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _secret_names(value)


def _parse_entrypoint(entrypoint: str) -> tuple[str | None, str | None, list[str]]:
    """The module, --config and overrides of `python -m ray_jobs.JOB ...`."""
    words = shlex.split(entrypoint)
    if words[:2] != ["python", "-m"] or not words[2:] or not words[2].startswith("ray_jobs."):
        return None, None, []
    config = words[words.index("--config") + 1] if "--config" in words else None
    return words[2], config, [word for word in words[3:] if re.match(r"\w+\.\w+=", word)]


def main() -> int:
    try:
        found = find_problems(load_deployment())
    except UsageError as error:
        found = [str(error)]
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

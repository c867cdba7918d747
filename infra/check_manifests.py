"""Checks that the files under infra/ fit the code: images, resources, permissions and jobs.

    python -m infra.check_manifests

Prints one line per problem, with its file and field, to stderr; exit code 1 if there are any. Needs
`kustomize` or `kubectl`, but no cluster.
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

from ray_jobs.cluster.ray_internals import CREATE_PACKAGE, WORKING_DIR_EXCLUDES
from segan.config import ClusterConfig, load_config, shipped_configs
from segan.errors import UsageError
from segan.utils.text import count_noun

ROOT = Path(__file__).parent.parent
KUBERAY = Path("infra/kuberay")
AWS = "infra/aws/cluster.yaml"
DOCKERFILE = "infra/docker/Dockerfile"
RUNTIME_ENV = "ray_jobs/runtime_env.yaml"
GUIDE = "docs/cluster.md"

GPU = "nvidia.com/gpu"
CPUS_FOR_DATA = 1  # as in ray_jobs.cluster.capacity, which would import Ray
OBJECT_STORE_FRACTION = 0.3  # of a node's memory, which Ray allocates in /dev/shm
UNPRIVILEGED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")
UNITS = {"m": 1e-3, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
# The clusters in a resource's spec, by its kind.
CLUSTER_FIELDS = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}

Tree = dict[str, Any]


@dataclass
class Deployment:
    """The contents of infra/ as they would be applied.

    Attributes:
        kuberay: the rendered resources of each overlay and job, by its folder.
        working_dir_files: the files of a job's working directory.
        ray_version: the version in constraints.txt.
    """

    kuberay: dict[str, list[Tree]]
    aws: Tree
    runtime_env: Tree
    dockerfile: str
    cluster_guide: str
    working_dir_files: list[str]
    ray_version: str


def load_deployment(root: Path = ROOT) -> Deployment:
    """Reads and renders the files of a repository."""
    overlays = [KUBERAY / "small", KUBERAY / "large", KUBERAY / "service"]
    overlays += sorted(path.relative_to(root) for path in (root / KUBERAY / "jobs").iterdir())
    with tempfile.TemporaryDirectory() as folder:
        package = package_working_dir(root, Path(folder) / "working_dir.zip")
        working_dir_files = zipfile.ZipFile(package).namelist()
    (ray,) = re.findall(r"^ray==(.+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    return Deployment(
        kuberay={str(overlay): render(root / overlay) for overlay in overlays},
        aws=yaml.safe_load((root / AWS).read_text()),
        runtime_env=yaml.safe_load((root / RUNTIME_ENV).read_text()),
        dockerfile=(root / DOCKERFILE).read_text(),
        cluster_guide=(root / GUIDE).read_text(),
        working_dir_files=working_dir_files,
        ray_version=ray,
    )


def render_command() -> list[str]:
    """The command that renders a kustomization; empty if none is installed."""
    if kustomize := shutil.which("kustomize"):
        return [kustomize, "build"]
    return [kubectl, "kustomize"] if (kubectl := shutil.which("kubectl")) else []


def render(folder: Path) -> list[Tree]:
    """The resources of a kustomization; raises UsageError if it cannot be rendered."""
    if not (command := render_command()):
        raise UsageError("neither kustomize nor kubectl is on the PATH; install one of them")
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{folder}: {done.stderr.strip()}")
    return list(yaml.safe_load_all(done.stdout))


def package_working_dir(root: Path, target: Path) -> Path:
    """Zips a job's working directory as `ray job submit` does; returns `target`."""
    CREATE_PACKAGE.load()(
        str(root),
        target,
        include_gitignore=True,
        excludes=WORKING_DIR_EXCLUDES.load()(),
        logger=logging.getLogger(__name__),
    )
    return target


def find_problems(deployment: Deployment, root: Path = ROOT) -> list[str]:
    """One line per problem, with its file and field."""
    found = [*_check_runtime_env(deployment), *_check_image(deployment), *_check_aws(deployment)]
    for folder, resources in deployment.kuberay.items():
        for resource in resources:
            kind, spec = resource["kind"], resource.get("spec", {})
            where = f"{folder}: {kind} spec"
            if kind in CLUSTER_FIELDS:
                field = CLUSTER_FIELDS[kind]
                cluster, at = (spec[field], f"{where}.{field}") if field else (spec, where)
                found += _check_cluster(at, cluster, resources, deployment)
            if kind == "RayJob":
                found += _check_job(where, spec, deployment, root)
            if kind == "RayService":
                found += _check_service(where, spec, deployment)
    return found


def _expect(tree: Any, where: str, expected: dict[str, Any]) -> Iterator[str]:
    """A problem for each dotted field of a tree that has not the expected value."""
    for field, value in expected.items():
        found = tree
        for key in field.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found != value:
            yield f"{where}.{field}: expected {value}, found {found}"


def _check_cluster(
    where: str, spec: Tree, resources: list[Tree], deployment: Deployment
) -> Iterator[str]:
    expected: dict[str, Any] = {
        "headGroupSpec.rayStartParams.num-cpus": "0",  # the head runs no tasks
        "authOptions.mode": "token",
        "rayVersion": deployment.ray_version,
    }
    if spec.get("enableInTreeAutoscaling"):
        expected |= {
            "autoscalerOptions.version": "v2",
            "autoscalerOptions.securityContext": UNPRIVILEGED,
        }
    yield from _expect(spec, where, expected)
    if not any(r["kind"] == "NetworkPolicy" for r in resources):
        yield f"{where}: no NetworkPolicy; only Ray's pods may reach Ray's ports"
    token = spec.get("authOptions", {}).get("secretName")
    if not token:
        yield f"{where}.authOptions.secretName: missing"
    for name in filter(None, [token, *_secret_names(spec)]):
        if f"create secret generic {name} " not in deployment.cluster_guide:
            yield f"{where}: secret {name}: {GUIDE} does not describe how to create it"
    yield from _check_pod(f"{where}.headGroupSpec", spec["headGroupSpec"], resources, deployment)
    for index, group in enumerate(spec["workerGroupSpecs"]):
        path = f"{where}.workerGroupSpecs[{index}]"
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{path}.replicas: expected minReplicas <= replicas <= maxReplicas"
        yield from _check_pod(path, group, resources, deployment)


def _check_pod(
    where: str, group: Tree, resources: list[Tree], deployment: Deployment
) -> Iterator[str]:
    spec, path = group["template"]["spec"], f"{where}.template.spec"
    yield from _expect(
        spec,
        path,
        {
            "securityContext.runAsNonRoot": True,
            "securityContext.seccompProfile": {"type": "RuntimeDefault"},
        },
    )
    if not spec.get("securityContext", {}).get("runAsUser"):
        yield f"{path}.securityContext.runAsUser: expected a user that is not root"
    accounts = [r["metadata"]["name"] for r in resources if r["kind"] == "ServiceAccount"]
    if spec.get("serviceAccountName") not in accounts:
        yield f"{path}.serviceAccountName: expected one of {accounts}"
    volumes = {volume["name"]: volume.get("emptyDir", {}) for volume in spec.get("volumes", [])}
    for index, container in enumerate(spec["containers"]):
        at = f"{path}.containers[{index}]"
        limits = container["resources"]["limits"]
        kind = "gpu" if GPU in limits else "cpu"
        yield from _expect(
            container, at, {"securityContext": UNPRIVILEGED, "resources.requests": limits}
        )
        yield from _check_tag(f"{at}.image", container["image"], deployment, kind)
        for variable in container.get("env", []):
            if SECRET_NAME.search(variable["name"]) and "value" in variable:
                yield f"{at}.env {variable['name']}: credentials in plain text; use a Secret"
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        memory = volumes.get(mounts.get("/dev/shm", ""), {})  # noqa: S108
        least = OBJECT_STORE_FRACTION * quantity(limits["memory"])
        if memory.get("medium") != "Memory" or quantity(memory.get("sizeLimit", 0)) < least:
            yield f"{at}: /dev/shm: expected a Memory volume of {least / 2**30:.1f}Gi or more"


def _check_job(where: str, spec: Tree, deployment: Deployment, root: Path) -> Iterator[str]:
    yield from _expect(spec, where, {"shutdownAfterJobFinishes": True})  # an idle cluster costs
    for field in ("activeDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimit"):
        if not spec.get(field):
            yield f"{where}.{field}: expected a positive number"
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    variables = environment.get("env_vars", {})
    if not re.fullmatch(r"s3://.+\.zip", environment.get("working_dir", "")):
        yield f"{where}.runtimeEnvYAML working_dir: expected a zip in the bucket"
    for name in filter(SECRET_NAME.search, variables):
        yield f"{where}.runtimeEnvYAML env_vars.{name}: Ray shows these; no credentials here"
    if not variables.items() >= deployment.runtime_env["env_vars"].items():
        yield f"{where}.runtimeEnvYAML env_vars: expected all variables of {RUNTIME_ENV}"
    path = f"{where}.entrypoint"
    words = shlex.split(spec["entrypoint"])
    if words[:2] != ["python", "-m"] or not words[2:3] or not words[2].startswith("ray_jobs."):
        yield f"{path}: expected python -m ray_jobs.JOB, found {spec['entrypoint']!r}"
        return
    config = words[words.index("--config") + 1] if "--config" in words else None
    if config in shipped_configs():
        config = f"segan/config/shipped/{config}.yaml"
    files = [f"{words[2].replace('.', '/')}.py", *([config] if config else [])]
    missing = [file for file in files if file not in deployment.working_dir_files]
    yield from (f"{path}: {file}: not in the working directory (.rayignore)" for file in missing)
    if missing:
        return
    overrides = [word for word in words[3:] if re.match(r"\w+\.\w+=", word)]
    try:
        cluster = load_config(root / config if config else None, overrides).cluster
    except UsageError as error:
        yield f"{path}: {error}"
        return
    yield from _check_capacity(path, cluster, spec["rayClusterSpec"]["workerGroupSpecs"])


def _check_capacity(where: str, config: ClusterConfig, groups: list[Tree]) -> Iterator[str]:
    """A job needs its nodes when it starts; with resource_timeout_s it waits for more."""
    replicas = "maxReplicas" if config.resource_timeout_s else "minReplicas"
    has_gpu = any(
        quantity(container["resources"]["limits"].get(GPU, 0)) > 0
        for group in groups
        for container in group["template"]["spec"]["containers"][:1]
    )
    config = config.resolve_device(has_gpu)
    for name, amount, reserved in (
        (GPU, config.reserved_gpus, 0),
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
            data = f" plus {reserved} for reading data" if reserved else ""
            yield (
                f"{where}: {count_noun(config.workers, 'worker')} of {amount:g} {name}{data}: "
                f"{required:g} required, {available:g} in {replicas} of the worker groups"
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
        yield f"{RUNTIME_ENV}: env_vars.{name}: Ray shows these; no credentials here"
    if RUNTIME_ENV not in deployment.working_dir_files:
        yield f".rayignore: {RUNTIME_ENV} is not in the working directory"


def _check_tag(where: str, image: str, deployment: Deployment, kind: str) -> Iterator[str]:
    expected = f"/segan:{deployment.ray_version}-{kind}"
    if not image.endswith(expected):
        yield f"{where}: expected ...{expected}, found {image}"


def _check_image(deployment: Deployment) -> Iterator[str]:
    base = rf"^ARG BASE=rayproject/ray:{re.escape(deployment.ray_version)}-"
    if not re.search(base, deployment.dockerfile, re.MULTILINE):
        yield f"{DOCKERFILE}: ARG BASE: expected Ray {deployment.ray_version} (constraints.txt)"
    users = re.findall(r"^USER (.+)$", deployment.dockerfile, re.MULTILINE)
    if not users or users[-1] in ("root", "0"):
        yield f"{DOCKERFILE}: USER: expected a user that is not root"
    if "RAY_AUTH_MODE=token" not in deployment.dockerfile:
        yield f"{DOCKERFILE}: ENV RAY_AUTH_MODE: expected token"


def _check_aws(deployment: Deployment) -> Iterator[str]:
    config = deployment.aws
    yield from _check_tag(f"{AWS}: docker.image", config["docker"]["image"], deployment, "gpu")
    if "--env RAY_AUTH_MODE=token" not in config["docker"]["run_options"]:
        yield f"{AWS}: docker.run_options: expected --env RAY_AUTH_MODE=token"
    if "/home/ray/.ray/auth_token" not in config.get("file_mounts", {}):
        yield f"{AWS}: file_mounts: the token is missing"
    head, types = config["head_node_type"], config["available_node_types"]
    yield from _expect(types[head], f"{AWS}: available_node_types.{head}", {"resources.CPU": 0})
    start = " ".join(config["head_start_ray_commands"])
    for option in ("--num-cpus=0", "--dashboard-host=127.0.0.1"):
        if option not in start:
            yield f"{AWS}: head_start_ray_commands: expected {option}"
    for name, node in types.items():
        at, machine = f"{AWS}: available_node_types.{name}.node_config", node["node_config"]
        for field in ("SecurityGroupIds", "IamInstanceProfile", "ImageId"):
            if not machine.get(field):
                yield f"{at}.{field}: missing"
        expected = {"MetadataOptions": {"HttpTokens": "required"}}
        if name != head:
            expected["InstanceMarketOptions"] = {"MarketType": "spot"}
        yield from _expect(machine, at, expected)


def quantity(value: str | float) -> float:
    """A Kubernetes quantity, such as 500m or 28Gi, as a number."""
    match = re.fullmatch(r"([0-9.]+)(m|[KMGT]i|)", str(value))
    if not match:
        raise UsageError(f"{value!r}: expected a Kubernetes quantity, such as 500m or 28Gi")
    return float(match[1]) * UNITS[match[2]]


def _secret_names(tree: Any) -> Iterator[str]:
    """The names of the Secrets that a tree refers to."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in ("secretRef", "secretKeyRef"):
                yield value["name"]
            yield from _secret_names(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _secret_names(value)


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

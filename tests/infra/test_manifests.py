"""The manifests under infra/, rendered by kustomize: they match the schemas of KubeRay and of Ray's
launcher, and fit the code, the configurations and the pinned versions."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from infra.check_manifests import (
    ROOT,
    Deployment,
    find_problems,
    load_deployment,
    package_working_dir,
    render,
    render_command,
)

pytestmark = pytest.mark.skipif(
    not render_command(), reason="neither kustomize nor kubectl is installed"
)

Tree = dict[str, Any]
CLUSTERS = ["infra/kuberay/small", "infra/kuberay/large"]
SERVICE = "infra/kuberay/service"
JOBS = [
    f"infra/kuberay/jobs/{size}-{task}" for size in ("large", "small") for task in ("train", "tune")
]
MEBIBYTE = 2**20


@pytest.fixture(scope="session")
def schemas() -> dict[str, Tree]:
    """KubeRay's JSON schemas by kind, without unknown fields; skips the test if there are none."""
    beside = Path(__file__).parents[3] / "shared" / "schemas"
    folder = Path(os.environ.get("SEGAN_SCHEMAS", beside))
    if not folder.is_dir():
        pytest.skip(f"no KubeRay schemas in {folder}; SEGAN_SCHEMAS says where they are")
    return {
        kind: json.loads((folder / f"kuberay-{kind.lower()}-v1.schema.json").read_text())
        for kind in ("RayCluster", "RayJob", "RayService")
    }


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    return load_deployment()


@pytest.fixture
def deployment_copy(deployment: Deployment) -> Deployment:
    """A copy that a test can change."""
    return copy.deepcopy(deployment)


def schema_errors(resources: list[Tree], schemas: dict[str, Tree]) -> list[str]:
    """The errors that KubeRay's API would report."""
    return [
        f"{resource['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message}"
        for resource in resources
        if resource["kind"] in schemas
        for error in jsonschema.Draft7Validator(schemas[resource["kind"]]).iter_errors(resource)
    ]


def test_there_are_no_problems(deployment: Deployment) -> None:
    assert sorted(deployment.kuberay) == sorted([*CLUSTERS, *JOBS, SERVICE])
    assert find_problems(deployment) == []


def test_a_job_that_waits_counts_the_maximum_of_nodes(deployment_copy: Deployment) -> None:
    small_train_spec(deployment_copy)["entrypoint"] += (
        " cluster.workers=2 cluster.resource_timeout_s=900"
    )
    small_train_spec(deployment_copy)["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"] = 2
    assert find_problems(deployment_copy) == []


@pytest.mark.parametrize("overlay", [*CLUSTERS, *JOBS, SERVICE])
def test_the_resources_match_kuberays_schemas(
    overlay: str, deployment: Deployment, schemas: dict[str, Tree]
) -> None:
    resources = deployment.kuberay[overlay]
    rays = [r["kind"] for r in resources if r["apiVersion"] == "ray.io/v1"]
    kind = "RayJob" if overlay in JOBS else "RayService" if overlay == SERVICE else "RayCluster"
    assert rays == [kind]
    assert schema_errors(resources, schemas) == []


def test_a_job_has_the_cluster_of_its_overlay(deployment: Deployment) -> None:
    for size in ("small", "large"):
        (cluster,) = resources_of_kind(deployment, f"infra/kuberay/{size}", "RayCluster")
        (job,) = resources_of_kind(deployment, f"infra/kuberay/jobs/{size}-train", "RayJob")
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]


def test_with_the_optional_components(
    tmp_path: Path, deployment_copy: Deployment, schemas: dict[str, Tree]
) -> None:
    shutil.copytree(ROOT / "infra/kuberay", tmp_path / "kuberay")
    job = tmp_path / "kuberay/jobs/small-train/kustomization.yaml"
    tree = yaml.safe_load(job.read_text())
    tree["components"] = [f"../../components/{name}" for name in ("irsa", "job", "kueue")]
    job.write_text(yaml.safe_dump(tree))
    deployment_copy.kuberay = {"with components": render(job.parent)}
    assert find_problems(deployment_copy) == []
    assert schema_errors(deployment_copy.kuberay["with components"], schemas) == []
    (rendered,) = resources_of_kind(deployment_copy, "with components", "RayJob")
    assert rendered["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "segan"}
    assert "segan-s3" not in yaml.safe_dump(rendered)


def test_rays_launcher_accepts_its_configuration(deployment: Deployment) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(deployment.aws))
    validate_config(prepared)
    # Ray's defaults, such as the installation of a nightly build, are all overridden.
    for field in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[field] == []


def test_ray_accepts_the_runtime_environment(deployment: Deployment) -> None:
    from ray.runtime_env import RuntimeEnv

    assert RuntimeEnv(**deployment.runtime_env)["env_vars"] == deployment.runtime_env["env_vars"]


def test_the_working_directory_is_small(tmp_path: Path) -> None:
    packed = package_working_dir(ROOT, tmp_path / "working_dir.zip")
    members = zipfile.ZipFile(packed).infolist()
    names = [member.filename for member in members]
    models = [member for member in members if member.filename.startswith("segan/models/")]
    size, models_size = packed.stat().st_size, sum(member.compress_size for member in models)
    assert size - models_size < 2 * MEBIBYTE
    assert models_size < 16 * MEBIBYTE
    assert {"ray_jobs/train.py", "segan/config/shipped/paper.yaml", "segan/cli/main.py"} <= set(
        names
    )
    assert {name.split("/")[0] for name in names} == {"segan", "ray_jobs"}
    assert not any("__pycache__" in name for name in names)


def test_hadolint_reports_nothing() -> None:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not (hadolint := shutil.which("hadolint", path=places)):
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [hadolint, ROOT / "infra/docker/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


# Common mistakes, each with a part of the line that reports it.

Mistake = Callable[[Deployment], None]
Table = dict[str, tuple[Mistake, str]]
SCHEMA_MISTAKES: Table = {}
CHECK_MISTAKES: Table = {}


def mistake(message: str, table: Table = CHECK_MISTAKES) -> Callable[[Mistake], Mistake]:
    def register(make: Mistake) -> Mistake:
        table[make.__name__.replace("_", " ")] = make, message
        return make

    return register


def resources_of_kind(deployment: Deployment, where: str, kind: str) -> list[Tree]:
    return [r for r in deployment.kuberay[where] if r["kind"] == kind]


def small_cluster_spec(deployment: Deployment) -> Tree:
    """The spec of the small cluster."""
    (cluster,) = resources_of_kind(deployment, CLUSTERS[0], "RayCluster")
    return cluster["spec"]


def worker_pod_spec(deployment: Deployment) -> Tree:
    return small_cluster_spec(deployment)["workerGroupSpecs"][0]["template"]["spec"]


def small_train_spec(deployment: Deployment) -> Tree:
    """The spec of the job small-train."""
    (found,) = resources_of_kind(deployment, "infra/kuberay/jobs/small-train", "RayJob")
    return found["spec"]


def service_spec(deployment: Deployment) -> Tree:
    (found,) = resources_of_kind(deployment, SERVICE, "RayService")
    return found["spec"]


def gpu_node_config(deployment: Deployment) -> Tree:
    return deployment.aws["available_node_types"]["gpu"]["node_config"]


@mistake("RayCluster spec: Additional properties are not allowed ('rayversion'", SCHEMA_MISTAKES)
def a_misspelt_field(d: Deployment) -> None:
    small_cluster_spec(d)["rayversion"] = small_cluster_spec(d).pop("rayVersion")


@mistake("spec.workerGroupSpecs.0.maxReplicas: '4' is not of type 'integer'", SCHEMA_MISTAKES)
def a_string_where_a_number_belongs(d: Deployment) -> None:
    small_cluster_spec(d)["workerGroupSpecs"][0]["maxReplicas"] = "4"


@mistake("spec.authOptions.mode: 'tokens' is not one of", SCHEMA_MISTAKES)
def a_mode_that_does_not_exist(d: Deployment) -> None:
    small_cluster_spec(d)["authOptions"]["mode"] = "tokens"


@mistake("infra/kuberay/small: RayCluster spec.headGroupSpec.rayStartParams.num-cpus: expected 0")
def a_head_that_takes_work(d: Deployment) -> None:
    del small_cluster_spec(d)["headGroupSpec"]["rayStartParams"]["num-cpus"]


@mistake("infra/kuberay/small: RayCluster spec.authOptions.mode: expected token, found None")
def a_cluster_without_a_token(d: Deployment) -> None:
    del small_cluster_spec(d)["authOptions"]


@mistake("spec.rayVersion: expected 2.60.0, found 2.59.0")
def an_older_ray(d: Deployment) -> None:
    small_cluster_spec(d)["rayVersion"] = "2.59.0"


@mistake(
    "containers[0].image: expected .../segan:2.60.0-gpu, "
    "found registry.example.com/segan:2.59.0-gpu"
)
def an_older_image(d: Deployment) -> None:
    worker_pod_spec(d)["containers"][0]["image"] = "registry.example.com/segan:2.59.0-gpu"


@mistake(
    "containers[0].image: expected .../segan:2.60.0-gpu, "
    "found registry.example.com/segan:2.60.0-cpu"
)
def the_cpu_image_on_a_gpu(d: Deployment) -> None:
    worker_pod_spec(d)["containers"][0]["image"] = "registry.example.com/segan:2.60.0-cpu"


@mistake("workerGroupSpecs[0].template.spec.securityContext.runAsNonRoot: expected True")
def a_pod_that_may_be_root(d: Deployment) -> None:
    del worker_pod_spec(d)["securityContext"]["runAsNonRoot"]


@mistake("spec.headGroupSpec.template.spec.containers[0].securityContext: expected")
def a_container_that_may_gain_rights(d: Deployment) -> None:
    del small_cluster_spec(d)["headGroupSpec"]["template"]["spec"]["containers"][0][
        "securityContext"
    ]


@mistake("containers[0]: /dev/shm: expected a Memory volume of 8.4Gi or more")  # 0.3 x 28 Gi
def a_small_dev_shm(d: Deployment) -> None:
    worker_pod_spec(d)["volumes"][0]["emptyDir"]["sizeLimit"] = "64Mi"


@mistake("containers[0].resources.requests: expected {")
def fewer_gpus_requested_than_the_limit(d: Deployment) -> None:
    worker_pod_spec(d)["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] = "0"


@mistake("secret segan-bucket: docs/cluster.md does not describe how to create it")
def a_secret_without_instructions(d: Deployment) -> None:
    worker_pod_spec(d)["containers"][0]["envFrom"] = [{"secretRef": {"name": "segan-bucket"}}]


@mistake("containers[0].env AWS_SECRET_ACCESS_KEY: credentials in plain text")
def a_key_in_clear(d: Deployment) -> None:
    worker_pod_spec(d)["containers"][0]["env"] = [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}]


@mistake("serviceAccountName: expected one of ['segan']")
def an_account_that_does_not_exist(d: Deployment) -> None:
    worker_pod_spec(d)["serviceAccountName"] = "ray"


@mistake("RayCluster spec: no NetworkPolicy")
def ports_open_to_all_pods(d: Deployment) -> None:
    resources = d.kuberay[CLUSTERS[0]]
    resources[:] = [r for r in resources if r["kind"] != "NetworkPolicy"]


@mistake("autoscalerOptions.version: expected v2")
def the_old_autoscaler(d: Deployment) -> None:
    small_cluster_spec(d)["autoscalerOptions"]["version"] = "v1"


@mistake("replicas: expected minReplicas <= replicas <= maxReplicas")
def more_replicas_than_the_most(d: Deployment) -> None:
    small_cluster_spec(d)["workerGroupSpecs"][0]["replicas"] = 2


@mistake(
    "small-train: RayJob spec.entrypoint: 2 workers of 1 nvidia.com/gpu: 2 required, 1 in "
    "minReplicas of the worker groups"
)
def more_gpus_than_there_are(d: Deployment) -> None:
    small_train_spec(d)["entrypoint"] += " cluster.workers=2"


@mistake("2 workers of 1 nvidia.com/gpu: 2 required, 1 in maxReplicas")
def more_gpus_than_can_come(d: Deployment) -> None:
    small_train_spec(d)["entrypoint"] += " cluster.workers=2 cluster.resource_timeout_s=900"


@mistake(
    "1 worker of 7 cpu plus 1 for reading data: 8 required, 7 in minReplicas of the worker groups"
)
def no_cpu_left_for_reading_data(d: Deployment) -> None:
    small_train_spec(d)["entrypoint"] += " cluster.cpus_per_worker=7"


@mistake("entrypoint: papers: not in the working directory")
def a_configuration_that_is_not_there(d: Deployment) -> None:
    small_train_spec(d)["entrypoint"] = small_train_spec(d)["entrypoint"].replace(
        "--config paper", "--config papers"
    )


@mistake("entrypoint: segan/config/shipped/paper.yaml: not in the working directory")
def a_configuration_that_is_ignored(d: Deployment) -> None:
    d.working_dir_files.remove("segan/config/shipped/paper.yaml")


@mistake("entrypoint: configuration cluster.worker: unknown key; the nearest known one is cluster.")
def an_override_of_nothing(d: Deployment) -> None:
    small_train_spec(d)["entrypoint"] += " cluster.worker=1"


@mistake("entrypoint: expected python -m ray_jobs.JOB")
def a_command_of_another_package(d: Deployment) -> None:
    small_train_spec(d)["entrypoint"] = "python train.py"


@mistake("shutdownAfterJobFinishes: expected True, found False")
def a_cluster_that_outlives_its_job(d: Deployment) -> None:
    small_train_spec(d)["shutdownAfterJobFinishes"] = False


@mistake("backoffLimit: expected a positive number")
def a_job_that_is_tried_once(d: Deployment) -> None:
    del small_train_spec(d)["backoffLimit"]


@mistake("runtimeEnvYAML env_vars.AWS_SECRET_ACCESS_KEY: Ray shows these; no credentials here")
def a_key_in_a_runtime_environment(d: Deployment) -> None:
    small_train_spec(d)["runtimeEnvYAML"] += '  AWS_SECRET_ACCESS_KEY: "abc"\n'


@mistake("runtimeEnvYAML env_vars: expected all variables of ray_jobs/runtime_env.yaml")
def two_runtime_environments(d: Deployment) -> None:
    d.runtime_env["env_vars"]["OMP_NUM_THREADS"] = "1"


@mistake("RayService spec: ray-worker: expected SEGAN_SERVE_TOKEN from a Secret")
def a_service_without_a_token(d: Deployment) -> None:
    del service_spec(d)["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"][
        "containers"
    ][0]["env"]


@mistake("RayService spec.serveConfigV2: 1 validation error for ServeDeploySchema")
def an_option_that_serve_does_not_know(d: Deployment) -> None:
    service_spec(d)["serveConfigV2"] = service_spec(d)["serveConfigV2"].replace(
        "port: 8000", "port: http"
    )


@mistake("RayService spec.serveConfigV2: ray_jobs/service.py: not in the working directory")
def an_application_that_is_not_there(d: Deployment) -> None:
    config = service_spec(d)["serveConfigV2"]
    service_spec(d)["serveConfigV2"] = config.replace("ray_jobs.serve:", "ray_jobs.service:")


@mistake("ray_jobs/runtime_env.yaml: env_vars.WANDB_API_KEY: Ray shows these; no credentials here")
def a_key_in_the_file(d: Deployment) -> None:
    d.runtime_env["env_vars"]["WANDB_API_KEY"] = "abc"


@mistake("infra/docker/Dockerfile: ARG BASE: expected Ray 2.60.0")
def a_base_of_another_ray(d: Deployment) -> None:
    d.dockerfile = d.dockerfile.replace("BASE=rayproject/ray:2.60.0", "BASE=rayproject/ray:2.59.0")


@mistake("infra/docker/Dockerfile: USER: expected a user that is not root")
def an_image_that_runs_as_root(d: Deployment) -> None:
    d.dockerfile += "USER root\n"


@mistake("infra/aws/cluster.yaml: docker.image: expected .../segan:2.60.0-gpu")
def another_image_on_ec2(d: Deployment) -> None:
    d.aws["docker"]["image"] = "rayproject/ray:latest"


@mistake("infra/aws/cluster.yaml: docker.run_options: expected --env RAY_AUTH_MODE=token")
def no_token_on_ec2(d: Deployment) -> None:
    d.aws["docker"]["run_options"] = []


@mistake("infra/aws/cluster.yaml: head_start_ray_commands: expected --dashboard-host=127.0.0.1")
def a_dashboard_for_the_whole_network(d: Deployment) -> None:
    d.aws["head_start_ray_commands"][1] = "ray start --head --num-cpus=0 --dashboard-host=0.0.0.0"


@mistake("available_node_types.gpu.node_config.SecurityGroupIds: missing")
def ssh_open_to_the_world(d: Deployment) -> None:
    del gpu_node_config(d)["SecurityGroupIds"]


@mistake(
    "available_node_types.gpu.node_config.InstanceMarketOptions: expected {'MarketType': 'spot'}"
)
def workers_at_full_price(d: Deployment) -> None:
    del gpu_node_config(d)["InstanceMarketOptions"]


@pytest.mark.parametrize("name", SCHEMA_MISTAKES)
def test_kuberays_schema_reports_the_mistake(
    name: str, deployment_copy: Deployment, schemas: dict[str, Tree]
) -> None:
    make, message = SCHEMA_MISTAKES[name]
    make(deployment_copy)
    found = schema_errors(deployment_copy.kuberay[CLUSTERS[0]], schemas)
    assert any(message in line for line in found), found


@pytest.mark.parametrize("name", CHECK_MISTAKES)
def test_the_check_reports_the_mistake(name: str, deployment_copy: Deployment) -> None:
    make, message = CHECK_MISTAKES[name]
    make(deployment_copy)
    found = find_problems(deployment_copy)
    assert any(message in line for line in found), found

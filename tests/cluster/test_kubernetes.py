"""The Kubernetes files: what KubeRay's own definitions accept, and what this project's commands do."""

import gzip
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml
from ray.scripts.scripts import drain_node

import livetrain
from livetrain.cli import main as cli
from livetrain.cli import terminal

ROOT = Path(livetrain.__file__).parent
FOLDER = ROOT / "cluster/kubernetes"
CRDS = Path(os.environ.get("LIVETRAIN_DATA", "nowhere")) / "kuberay-crds"
CLUSTER, NIGHTLY = (yaml.safe_load((FOLDER / name).read_text()) for name in ("cluster.yaml", "nightly.yaml"))

POLICIES = list(yaml.safe_load_all((FOLDER / "network.yaml").read_text()))


def closed(schema: Any) -> Any:
    """A definition that refuses what it does not know, as the API server's strict validation does."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    if schema.get("type") == "object" and "properties" in schema:
        out.setdefault("additionalProperties", False)
    return out


def problems(made: dict) -> list[str]:
    path = CRDS / f"ray.io_{made['kind'].lower()}s.yaml.gz"
    versions = yaml.safe_load(gzip.decompress(path.read_bytes()))["spec"]["versions"]
    name = made["apiVersion"].split("/")[1]
    (schema,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == name)
    return [
        error.message
        for error in jsonschema.Draft7Validator(closed(schema["properties"]["spec"])).iter_errors(made["spec"])
    ]


@pytest.mark.slow
@pytest.mark.skipif(not CRDS.is_dir(), reason="LIVETRAIN_DATA has no kuberay-crds")
def test_kuberay_accepts_the_cluster():
    assert problems(CLUSTER) == []
    assert problems({**CLUSTER, "spec": {**CLUSTER["spec"], "headGroup": {}}}) != []


def pods() -> dict[str, dict]:
    spec = CLUSTER["spec"]
    return {
        "head": spec["headGroupSpec"]["template"]["spec"],
        "worker": spec["workerGroupSpecs"][0]["template"]["spec"],
        "submit": NIGHTLY["spec"]["jobTemplate"]["spec"]["template"]["spec"],
    }


def test_every_pod_has_the_image_and_the_volumes_that_it_mounts():
    containers = {name: pod["containers"][0] for name, pod in pods().items()}
    assert list(containers) == [container["name"] for container in containers.values()]
    assert len({container["image"] for container in containers.values()}) == 1
    for name, pod in pods().items():
        mounts = {mount["name"]: mount["mountPath"] for mount in containers[name]["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
        assert mounts["shared"] == "/shared"
    claims = {
        v["persistentVolumeClaim"]["claimName"]
        for pod in pods().values()
        for v in pod["volumes"]
        if v["name"] == "shared"
    }
    assert claims == {"livetrain"}


def test_workers_have_as_many_gpus_as_the_planner_thinks():
    from livetrain.configs.schema import Topology

    worker = pods()["worker"]["containers"][0]["resources"]
    assert worker["limits"] == worker["requests"]
    assert worker["limits"]["nvidia.com/gpu"] == Topology().workers_per_node
    groups = CLUSTER["spec"]["workerGroupSpecs"]
    assert sum(group["replicas"] for group in groups) * worker["limits"]["nvidia.com/gpu"] == 64


def test_versions_are_those_that_are_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (ray,) = (re.search(r"==(.*)", one)[1] for one in project["dependencies"] if one.startswith("ray["))
    assert CLUSTER["spec"]["rayVersion"] == ray
    for pod in pods().values():
        assert pod["containers"][0]["image"].endswith(f":{project['version']}")
    assert f":{project['version']} ." in (FOLDER / "Dockerfile").read_text()


def test_the_night_is_a_command_of_this_project():
    """It is parsed as the pod would have it parsed, and asks the cluster of the other file."""
    container = pods()["submit"]["containers"][0]
    program, command, *words = container["command"] + container["args"]
    assert (program, command) == ("livetrain", "nightly")
    commands = typer.main.get_command(cli.app).commands
    given = commands[command].make_context(command, words).params
    assert given["address"] == f"http://{CLUSTER['metadata']['name']}-head-svc:8265"
    assert all(str(given[key]).startswith("/shared/") for key in ("recipe", "runs", "publish"))
    secret = next(one["valueFrom"]["secretKeyRef"] for one in container["env"] if "valueFrom" in one)
    assert secret == {"name": CLUSTER["spec"]["authOptions"]["secretName"], "key": "auth_token"}
    failures = NIGHTLY["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert failures[0] == {
        "action": "FailJob",
        "onExitCodes": {"operator": "In", "values": [terminal.BAD_INPUT, terminal.WORSE]},
    }
    assert len(failures) == 1  # after any other code, 4 among them, there is another try
    assert NIGHTLY["spec"]["concurrencyPolicy"] == "Forbid"


def test_the_image_has_what_the_set_up_needs():
    lines = (FOLDER / "Dockerfile").read_text()
    assert "ACCELERATOR=cuda LOCKED=1 cluster/setup.sh" in lines
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not {"cluster", "pyproject.toml", "README.md", "__init__.py", "cli"} & set(ignored)
    assert {".venv", "data", "runs"} <= set(ignored)


def test_no_pod_is_root_or_can_become_it():
    image = (FOLDER / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (.*)$", image, re.MULTILINE)
    assert image.rstrip().endswith(f"USER {user}")  # no step after it could be root's
    for pod in pods().values():
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": int(user),
            "runAsGroup": int(user),
            "fsGroup": int(user),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert not pod["automountServiceAccountToken"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


# What the pods of a namespace are told apart by; KubeRay gives its own these labels.
RAY = {"ray.io/cluster": CLUSTER["metadata"]["name"]}
WHO = {
    "head": RAY | {"ray.io/node-type": "head"},
    "worker": RAY | {"ray.io/node-type": "worker"},
    "submit": NIGHTLY["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"],
    "stranger": {"app": "other"},
    "dns": {"k8s-app": "kube-dns"},
}


def selects(selector: dict, labels: dict) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def allows(direction: str, pod: str, other: str, port: int) -> bool:
    """Whether the policies let a pod receive from (Ingress) or send to (Egress) another one, as Kubernetes decides."""
    chosen = [
        policy["spec"]
        for policy in POLICIES
        if selects(policy["spec"]["podSelector"], WHO[pod]) and direction in policy["spec"]["policyTypes"]
    ]

    def meets(peer: dict) -> bool:
        space = {"kubernetes.io/metadata.name": "kube-system"} if other == "dns" else None
        if "namespaceSelector" in peer:
            return (
                space is not None
                and selects(peer["namespaceSelector"], space)
                and selects(peer["podSelector"], WHO[other])
            )
        return space is None and selects(peer["podSelector"], WHO[other])

    rules = [rule for spec in chosen for rule in spec.get(direction.lower(), [])]
    return not chosen or any(
        any(meets(peer) for peer in rule["from" if direction == "Ingress" else "to"])
        and ("ports" not in rule or port in [one["port"] for one in rule["ports"]])
        for rule in rules
    )


def reaches(pod: str, other: str, port: int) -> bool:
    return allows("Egress", pod, other, port) and allows("Ingress", other, pod, port)


def test_the_network_lets_through_what_is_needed_and_no_more():
    dashboard, gcs, anything = 8265, 6379, 34567
    for pod in ("head", "worker"):
        assert all(reaches(pod, other, port) for other in ("head", "worker") for port in (dashboard, gcs, anything))
        assert not any(reaches("stranger", pod, port) for port in (dashboard, gcs, anything))
        assert not any(reaches(pod, "stranger", port) for port in (80, 443, anything))
    assert reaches("submit", "head", dashboard)
    assert not any(reaches("submit", "head", port) for port in (gcs, anything))
    assert not any(reaches("submit", "worker", port) for port in (dashboard, gcs, anything))
    assert not any(reaches("submit", "stranger", port) for port in (80, anything))
    assert all(reaches(pod, "dns", 53) and not reaches(pod, "dns", 80) for pod in ("head", "worker", "submit"))
    assert not any(reaches(other, "submit", port) for other in WHO for port in (22, anything))


def test_a_stopped_job_has_time_to_save():
    """Ray kills a job's command after its own wait, and `livetrain submit` waits for both."""
    from livetrain.cluster import submit

    given = {one["name"]: int(one["value"]) for one in pods()["head"]["containers"][0]["env"]}
    assert given["LIVETRAIN_GRACE_S"] + 7 < given["RAY_JOB_STOP_WAIT_TIME_S"] < submit._STOP_S


def test_a_pod_that_ends_tells_ray_so_in_rays_own_words():
    """By a command that Ray hides from its help: its options as the installed Ray has them."""
    (group,) = CLUSTER["spec"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    shell, flag, script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    told, waits = script.split(";")
    words = shlex.split(told)
    assert words[:2] == ["ray", "drain-node"]
    given = drain_node.make_context("drain-node", words[2:]).params
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    assert waits.split() == ["sleep", str(given["deadline_remaining_seconds"])]
    assert given["deadline_remaining_seconds"] < pod["terminationGracePeriodSeconds"]
    page = (ROOT / "docs/guide/cluster.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("ray drain-node"))
    assert drain_node.make_context("drain-node", shlex.split(line)[2:]).params["reason"] == given["reason"]

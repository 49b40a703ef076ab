"""The files that say where it runs: what Ray's schemas, our own, and each other allow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from serve import metrics
from serve.settings import AppSettings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = ("raycluster.yaml", "rayjob-sweep.yaml", "rayservice.yaml")
SHARED = "/mnt/shared"


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def ray_cluster(name: str) -> dict[str, Any]:
    """The part of a KubeRay file that describes a cluster."""
    spec: dict[str, Any] = read(f"kuberay/{name}")["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return found


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pinned_version(package: str) -> str:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{package}==(.+)$", text, re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CLUSTER.rglob("*") if path.suffix in (".yaml", ".json")),
    ids=lambda path: path.name,
)
def test_every_file_can_be_read_and_the_readme_names_it(path: Path) -> None:
    assert read(str(path.relative_to(CLUSTER)))
    readme = (CLUSTER / "README.md").read_text(encoding="utf-8")
    assert f"]({path.relative_to(CLUSTER)})" in readme


def test_every_file_names_the_ray_that_was_tested() -> None:
    tested = pinned_version("ray")
    assert tested == ray.__version__
    for path in [CLUSTER / "Dockerfile", *CLUSTER.rglob("*.yaml")]:
        text = path.read_text(encoding="utf-8")
        named = re.findall(
            r"rayproject/ray:(\d[\d.]*\d)|RAY_VERSION=(\S+)|rayVersion: \"(.+)\"", text
        )
        assert {version for match in named for version in match if version} <= {tested}, path.name
    assert {ray_cluster(name)["rayVersion"] for name in KUBERAY} == {tested}


def test_the_image_has_a_python_that_the_product_supports() -> None:
    images = re.findall(r"-py(\d)(\d+)-", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"))
    images += re.findall(r"-py(\d)(\d+)-", (CLUSTER / "ray-up.yaml").read_text(encoding="utf-8"))

    assert set(images) == {("3", "11")}
    assert 'requires-python = ">=3.11' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_image_holds_what_the_tree_holds() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    copied = set(re.findall(r"^COPY --chown=ray:users (\w+) \1$", text, re.MULTILINE))
    packaged = re.search(r"include = \[(.+)\]", (ROOT / "pyproject.toml").read_text())

    assert packaged
    assert copied == set(re.findall(r'"(\w+)\*"', packaged[1]))
    for line in re.findall(r"^COPY --chown=ray:users (.+) \./$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in line.split())


def test_ray_up_accepts_its_file() -> None:
    config = prepare_config(read("ray-up.yaml"))

    validate_config(config)
    assert config["head_node_type"] in config["available_node_types"]
    workers = {k: v for k, v in config["available_node_types"].items() if k != "head"}
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]


def test_ray_up_refuses_a_key_that_it_does_not_know() -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**read("ray-up.yaml"), "idle_minutes": 5}))


def test_ray_up_listens_on_the_loopback_and_wants_a_token() -> None:
    config = read("ray-up.yaml")

    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in config["file_mounts"]
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in start


@pytest.mark.parametrize("name", KUBERAY)
def test_clusters_on_kubernetes_want_a_token_and_share_a_folder(name: str) -> None:
    cluster = ray_cluster(name)
    claim = read("kuberay/storage.yaml")["metadata"]["name"]

    assert cluster["authOptions"] == {"mode": "token"}
    assert read("kuberay/storage.yaml")["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(cluster):
        pod = group["template"]["spec"]
        volumes = {one["name"]: one for one in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        assert volumes[mounts[SHARED]]["persistentVolumeClaim"] == {"claimName": claim}
        assert set(mounts.values()) <= set(volumes)


@pytest.mark.parametrize("name", KUBERAY)
def test_one_image_serves_all_nodes_of_a_kind(name: str) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    image = f"transfer-orchestrator:{version[1]}"

    for group in groups(ray_cluster(name)):
        gpu = group.get("groupName") == "gpu"
        for container in group["template"]["spec"]["containers"]:
            assert container["image"] == (f"{image}-gpu" if gpu else image)
            limits = container["resources"]["limits"]
            assert ("nvidia.com/gpu" in limits) == gpu


def test_a_lost_cluster_is_followed_by_another_that_continues() -> None:
    spec = read("kuberay/rayjob-sweep.yaml")["spec"]

    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    words = spec["entrypoint"].split()
    assert words[:4] == ["python", "-m", "jobs", "sweep"]
    assert words[4].startswith(SHARED)
    assert "--fresh" not in words


def serve_config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(read("kuberay/rayservice.yaml")["spec"]["serveConfigV2"])
    return found


def test_the_service_is_one_that_ray_serve_and_we_accept() -> None:
    deployed = ServeDeploySchema.model_validate(serve_config())

    (application,) = deployed.applications
    settings = AppSettings.model_validate(application.args)
    assert application.import_path == "serve.app:build_app"
    assert settings.max_replicas > settings.min_replicas >= 2
    for endpoint in settings.endpoints:
        assert (endpoint.registry or endpoint.bundle).partition("///")[2].startswith(SHARED)


def test_what_the_service_shows_to_the_network_wants_a_key() -> None:
    config = serve_config()
    (application,) = config["applications"]
    keys_file = Path(application["args"]["keys_file"])

    assert config["http_options"]["host"] == "0.0.0.0"
    for group in groups(ray_cluster("rayservice.yaml")):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {one["mountPath"]: one["name"] for one in container["volumeMounts"]}
        (copies,) = pod["initContainers"]
        assert str(keys_file.parent) in mounted
        assert copies["command"][:3] == ["install", "-m", "600"]
        assert copies["command"][-1] == str(keys_file)


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["query"] for one in dashboard["templating"]["list"])


def test_the_dashboard_draws_every_series_that_the_endpoint_exports_and_no_other() -> None:
    text = "\n".join(expressions(read("dashboards/endpoint.json")))
    drawn = set(re.findall(r"\borchestrator_\w+", text))
    families = set(re.findall(r"^# TYPE (\w+)", metrics.rendered({}), re.MULTILINE))
    assert len(families) > 4
    histograms = {f"{name}_bucket" for name in families if name.endswith("_seconds")}

    assert drawn == {name for name in families if not name.endswith("_seconds")} | histograms


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in read("dashboards/endpoint.json")["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_prometheus_asks_the_endpoint_with_a_key() -> None:
    jobs = {job["job_name"]: job for job in read("dashboards/prometheus.yaml")["scrape_configs"]}

    assert jobs["orchestrator"]["metrics_path"] == "/metrics"
    assert jobs["orchestrator"]["authorization"]["type"] == "Bearer"
    assert json.dumps(jobs["ray"]).count("/tmp/ray/prom_metrics_service_discovery.json") == 1

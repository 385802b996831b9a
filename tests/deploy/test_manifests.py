"""The Kubernetes manifests are valid by the published schemas, and consistent with each other."""

import copy
import pathlib
import re

import pytest
import yaml

import schemas

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
# (file, kind) -> manifest
MANIFESTS = {
    (path.name, manifest["kind"]): manifest
    for path in sorted(FOLDER.glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
}
DEPLOYMENT = MANIFESTS["triton.yaml", "Deployment"]
SERVICE = MANIFESTS["triton.yaml", "Service"]
RUNTIME = MANIFESTS["kserve.yaml", "ServingRuntime"]
INFERENCE = MANIFESTS["kserve.yaml", "InferenceService"]
CLAIM = MANIFESTS["model-repository.yaml", "PersistentVolumeClaim"]
POD = DEPLOYMENT["spec"]["template"]
GATEWAY = POD["spec"]["containers"][1]
CONTAINERS = {"Deployment": POD["spec"]["containers"][0], "ServingRuntime": RUNTIME["spec"]["containers"][0]}


@pytest.mark.parametrize("version", [schemas.OLDEST, schemas.NEWEST])
@pytest.mark.parametrize("key", MANIFESTS, ids=":".join)
def test_manifests_are_valid(key, version):
    assert schemas.violations(MANIFESTS[key], version) == []


BREAKS = [
    ("triton.yaml", "Deployment", ("spec", "template", "spec", "containers", 0, "startupProbes"), {}),
    ("triton.yaml", "Deployment", ("spec", "template", "spec", "containers", 0, "ports", 0, "containerPort"), "8000"),
    ("triton.yaml", "Deployment", ("spec", "selector"), None),
    ("triton.yaml", "Service", ("spec", "ports", 0, "targetport"), 1),
    ("model-repository.yaml", "PersistentVolumeClaim", ("spec", "accessModes"), "ReadWriteMany"),
    ("kserve.yaml", "ServingRuntime", ("spec", "protocolVersion"), ["v2"]),
    ("kserve.yaml", "ServingRuntime", ("spec", "multiModel"), "no"),
    ("kserve.yaml", "ServingRuntime", ("spec", "containers"), None),
    ("kserve.yaml", "ServingRuntime", ("spec", "containers", 0, "livenessProbe", "httpGet", "port"), [8080]),
    ("kserve.yaml", "ServingRuntime", ("spec", "volumes", 0, "emptydir"), {}),
    ("kserve.yaml", "ServingRuntime", ("metadata", "label"), {}),
    ("kserve.yaml", "InferenceService", ("spec", "predictor"), None),
    ("kserve.yaml", "InferenceService", ("spec", "predictor", "model", "storage_uri"), "pvc://x"),
    ("kserve.yaml", "InferenceService", ("spec", "predictor", "model", "resources", "limit"), {}),
    ("kserve.yaml", "InferenceService", ("spec", "predictor", "deploymentStrategy", "rolling"), {}),
    ("kserve.yaml", "InferenceService", ("spec", "predictor", "minReplicas"), "1"),
]


@pytest.mark.parametrize(("file", "kind", "path", "value"), BREAKS, ids=lambda each: str(each)[:60])
def test_schemas_reject_broken_manifest(file, kind, path, value):
    """Breaks one property of a manifest: a wrong name, a wrong type, or (None) a missing property."""
    broken = copy.deepcopy(MANIFESTS[file, kind])
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    assert schemas.violations(broken)


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_probes_ask_triton_at_the_port_that_it_serves(container):
    (http,) = [each for each in container["ports"] if each["name"].startswith("http")]
    named = [each for each in container["args"] if each.startswith("--http-port=")]
    assert http["containerPort"] == (int(named[0].partition("=")[2]) if named else 8000)
    paths = {"startupProbe": "live", "readinessProbe": "ready", "livenessProbe": "live"}
    for probe, route in paths.items():
        request = container[probe]["httpGet"]
        assert request["path"] == f"/v2/health/{route}"
        assert request["port"] in (http["name"], http["containerPort"])


def test_running_requests_may_finish():
    for container, spec in (
        (CONTAINERS["Deployment"], POD["spec"]),
        (CONTAINERS["ServingRuntime"], INFERENCE["spec"]["predictor"]),
    ):
        (timeout,) = [each for each in container["args"] if each.startswith("--exit-timeout-secs=")]
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        assert spec["terminationGracePeriodSeconds"] > int(timeout.partition("=")[2]) + int(sleep[1])
    # The gateway waits for its time limit and 10 s.
    limit, sleep = int(gateway_option("timeout-seconds")), GATEWAY["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["spec"]["terminationGracePeriodSeconds"] > limit + 10 + int(sleep[1])
    assert f"--exit-timeout-secs={limit}" in CONTAINERS["Deployment"]["args"]


def gateway_option(name):
    """Returns the value of an option of the gateway."""
    (value,) = [each.partition("=")[2] for each in GATEWAY["args"] if each.startswith(f"--{name}=")]
    return value


def test_the_gateway_is_next_to_its_triton():
    assert (GATEWAY["command"], GATEWAY["args"][0]) == (["triton-diffusion"], "gateway")
    ports = {each["name"]: each["containerPort"] for each in CONTAINERS["Deployment"]["ports"]}
    assert gateway_option("triton") == f"127.0.0.1:{ports['grpc']}"
    (port,) = GATEWAY["ports"]
    assert gateway_option("listen") == f"0.0.0.0:{port['containerPort']}"
    for probe, path in (("readinessProbe", "/healthz"), ("livenessProbe", "/metrics")):
        assert GATEWAY[probe]["httpGet"] == {"path": path, "port": port["name"]}
    assert "startupProbe" not in GATEWAY
    assert GATEWAY["resources"]["limits"]["memory"] == "2Gi" and int(gateway_option("max-bodies-mib")) * 5 < 2048
    # The command is in the image.
    dockerfile = (FOLDER.parents[1] / "Dockerfile").read_text()
    assert "COPY --from=build /src/dist/bin/triton-diffusion /opt/tritonserver/bin/triton-diffusion" in dockerfile


def test_the_service_leads_to_the_deployment():
    labels = POD["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels.items()
    named = {each["name"]: each["containerPort"] for one in POD["spec"]["containers"] for each in one["ports"]}
    assert named == {"http": 8000, "grpc": 8001, "metrics": 8002, "gateway": 8080}
    assert {each["targetPort"]: each["port"] for each in SERVICE["spec"]["ports"]} == named
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(named["metrics"])
    assert RUNTIME["spec"]["annotations"]["prometheus.kserve.io/port"] == "8002"


def test_the_inference_service_leads_to_the_runtime():
    model = INFERENCE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    formats = [(each["name"], each["version"]) for each in RUNTIME["spec"]["supportedModelFormats"]]
    assert (model["modelFormat"]["name"], model["modelFormat"]["version"]) in formats
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    # The name by which KServe finds the container, and the folder that it mounts.
    assert CONTAINERS["ServingRuntime"]["name"] == "kserve-container"
    assert "--model-repository=/mnt/models" in CONTAINERS["ServingRuntime"]["args"]


def test_each_server_has_a_gpu_the_models_read_only_and_shared_memory():
    claim = CLAIM["metadata"]["name"]
    deployed, runtime = CONTAINERS["Deployment"], CONTAINERS["ServingRuntime"]
    resources = (deployed["resources"], INFERENCE["spec"]["predictor"]["model"]["resources"])
    assert [each["limits"]["nvidia.com/gpu"] for each in resources] == ["1", "1"]

    volumes = {each["name"]: each for each in POD["spec"]["volumes"]}
    mounts = {each["mountPath"]: each for each in deployed["volumeMounts"]}
    assert volumes[mounts["/models"]["name"]]["persistentVolumeClaim"] == {"claimName": claim, "readOnly": True}
    assert mounts["/models"]["readOnly"] is True
    assert "--model-repository=/models" in deployed["args"]
    assert re.fullmatch(rf"pvc://{claim}(/.*)?", INFERENCE["spec"]["predictor"]["model"]["storageUri"])
    assert INFERENCE["metadata"]["annotations"]["storage.kserve.io/readonly"] == "true"

    for container, spec in ((deployed, POD["spec"]), (runtime, RUNTIME["spec"])):
        (shared,) = [each["name"] for each in container["volumeMounts"] if each["mountPath"] == "/dev/shm"]
        (volume,) = [each for each in spec["volumes"] if each["name"] == shared]
        assert volume["emptyDir"]["medium"] == "Memory"


def test_images_are_the_same_and_pinned():
    assert {each["image"] for each in (*CONTAINERS.values(), GATEWAY)} == {"triton-diffusion:0.1.0"}

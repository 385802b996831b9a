"""A dry run prints the calls as Python code and makes none of them."""

import pathlib
import socket
import subprocess
import sys

import boto3
import pytest

import calls
import endpoint
from test_endpoint import CONFIGURATION, DELETE, DEPLOY, ENDPOINT, INVOKE, MODEL, MODELS, REQUEST, TARGET, archive


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Makes every call fail."""

    def forbidden(*_, **__):
        raise AssertionError("a dry run made a call")

    monkeypatch.setattr(boto3, "Session", forbidden)
    monkeypatch.setattr(socket.socket, "connect", forbidden)


class Recorder:
    """Replaces a client in the printed code; records the calls as (service.method, parameters)."""

    def __init__(self, name, seen):
        self._name, self._seen = name, seen

    def __getattr__(self, method):
        return Recorder(f"{self._name}.{method}", self._seen)

    def __call__(self, *arguments, **parameters):
        if arguments:
            return Recorder(f"{self._name}:{arguments[0]}", self._seen)
        self._seen.append((self._name, parameters))


def printed(text):
    """Returns the calls in the output of a dry run, by running it."""
    seen = []
    for service in ("application-autoscaling", "sagemaker-runtime"):
        text = text.replace(f"{service}.", f"{service.replace('-', '_')}.")
    names = ("s3", "sagemaker", "sagemaker_runtime", "application_autoscaling")
    exec(text, {name: Recorder(name, seen) for name in names})
    return seen


def dry(capsys, *command):
    """Returns the calls that a dry run prints."""
    assert endpoint.main([*command, "--dry-run"]) == 0
    return printed(capsys.readouterr().out)


def test_upload(tmp_path, capsys):
    path = archive(tmp_path, "sd_base.tar.gz")
    key = {"Bucket": "my-bucket", "Key": "stable-diffusion/sd_base.tar.gz"}
    extra = {"ExtraArgs": {"Metadata": {"uploaded-by": "triton-diffusion"}}}
    wanted = [("s3.upload_file", {"Filename": str(path), **key, **extra})]
    assert dry(capsys, "upload", "--models", MODELS, str(path)) == wanted


def test_deploy(capsys):
    waiter = {"EndpointName": "sd", "WaiterConfig": {"Delay": 30, "MaxAttempts": 2}}
    assert dry(capsys, *DEPLOY) == [
        ("sagemaker.create_model", MODEL),
        ("sagemaker.create_endpoint_config", CONFIGURATION),
        ("sagemaker.create_endpoint", ENDPOINT),
        ("sagemaker.get_waiter:endpoint_in_service.wait", waiter),
    ]


def test_autoscale(capsys):
    register, put = dry(capsys, "autoscale", "--name", "sd", "--metric", "GPUUtilization", "--target-value", "55.5")
    assert register == (
        "application_autoscaling.register_scalable_target",
        {**TARGET, "MinCapacity": 2, "MaxCapacity": 4},
    )
    name, parameters = put
    assert name == "application_autoscaling.put_scaling_policy"
    tracking = parameters["TargetTrackingScalingPolicyConfiguration"]
    assert (tracking["TargetValue"], tracking["CustomizedMetricSpecification"]["MetricName"]) == (
        55.5,
        "GPUUtilization",
    )


def test_invoke(capsys):
    assert dry(capsys, *INVOKE) == [("sagemaker_runtime.invoke_endpoint", REQUEST)]


def test_long_bodies_are_truncated(tmp_path, capsys):
    (tmp_path / "image.png").write_bytes(bytes(3000))
    ((_, parameters),) = dry(capsys, *INVOKE, "--image", str(tmp_path / "image.png"), "--binary")
    assert len(parameters["Body"]) == 400


def test_delete(capsys):
    names = [name for name, _ in dry(capsys, *DELETE, "--models", MODELS)]
    assert names == [
        "application_autoscaling.delete_scaling_policy",
        "application_autoscaling.deregister_scalable_target",
        "sagemaker.delete_endpoint",
        "sagemaker.get_waiter:endpoint_deleted.wait",
        "sagemaker.delete_endpoint_config",
        "sagemaker.delete_model",
        "s3.list_objects_v2",
    ]


def test_without_credentials_region_or_home():
    script = pathlib.Path(endpoint.__file__)
    command = [sys.executable, str(script), *DEPLOY, "--dry-run"]
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("sagemaker.create_") == 3


def test_parameters_that_the_service_does_not_have_fail():
    dry_calls = calls.Calls(dry_run=True)
    with pytest.raises(calls.DeployError, match="ModelNme"):
        dry_calls.call("sagemaker", "delete_model", ModelNme="sd")
    with pytest.raises(calls.DeployError, match="no call create_modell"):
        dry_calls.call("sagemaker", "create_modell", ModelName="sd")


def test_failed_dry_run_removes_nothing(monkeypatch, capsys):
    def check(service, method, _):
        if method == "create_endpoint":
            raise calls.DeployError("not so")

    monkeypatch.setattr(calls, "check", check)
    assert endpoint.main([*DEPLOY, "--dry-run"]) == 1
    text = capsys.readouterr()
    assert [name for name, _ in printed(text.out)] == ["sagemaker.create_model", "sagemaker.create_endpoint_config"]
    assert "not so" in text.err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--name", "sd_base"),
        ("--name", "s" * 64),
        ("--models", "my-bucket/stable-diffusion"),
        ("--role", "SageMaker"),
        ("--image", "two words"),
        ("--instance-type", "g5.xlarge"),
        ("--ami", "two words"),
        ("--instances", "0"),
        ("--instances", "many"),
        ("--env", "VERBOSE"),
        ("--env", "A B=1"),
    ],
)
def test_bad_arguments_are_named(capsys, option, value):
    with pytest.raises(SystemExit) as caught:
        endpoint.main([*DEPLOY, option, value, "--dry-run"])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["autoscale", "--name", "sd", "--min-instances", "5"],
        ["autoscale", "--name", "sd", "--target-value", "nan"],
        [*INVOKE, "--gen-args", "[1]"],
        [*INVOKE, "--gen-args", "{"],
        [*INVOKE, "--target", "sd_base"],
        ["upload", "--models", MODELS],
    ],
)
def test_more_bad_arguments(command):
    with pytest.raises(SystemExit):
        endpoint.main([*command, "--dry-run"])


def test_without_a_region_a_call_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.undo()
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert endpoint.main(["delete", "--name", "sd"]) == 1
    assert "region" in capsys.readouterr().err

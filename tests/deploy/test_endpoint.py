"""Each command makes exactly these calls, in this order; a failure leaves nothing behind."""

import io
import tarfile

import pytest
from botocore.response import StreamingBody
from botocore.stub import ANY

import endpoint

ROLE = "arn:aws:iam::123456789012:role/SageMaker"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/triton-diffusion:0.1"
MODELS = "s3://my-bucket/stable-diffusion/"
MARK = {"uploaded-by": "triton-diffusion"}
DEPLOY = ["deploy", "--name", "sd", "--models", MODELS, "--image", IMAGE, "--role", ROLE, "--timeout", "1"]
DELETE = ["delete", "--name", "sd", "--timeout", "1"]
TARGET = {
    "ServiceNamespace": "sagemaker",
    "ResourceId": "endpoint/sd/variant/AllTraffic",
    "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
}
MODEL = {
    "ModelName": "sd",
    "PrimaryContainer": {
        "Image": IMAGE,
        "Mode": "MultiModel",
        "ModelDataUrl": MODELS,
        "Environment": {"SAGEMAKER_TRITON_LOG_VERBOSE": "false"},
    },
    "ExecutionRoleArn": ROLE,
}
CONFIGURATION = {
    "EndpointConfigName": "sd",
    "ProductionVariants": [
        {
            "VariantName": "AllTraffic",
            "ModelName": "sd",
            "InitialInstanceCount": 2,
            "InstanceType": "ml.g5.xlarge",
            "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
        }
    ],
}
ENDPOINT = {"EndpointName": "sd", "EndpointConfigName": "sd"}
MADE = {
    "create_model": {"ModelArn": "arn:aws:sagemaker:eu-west-1:123456789012:model/sd"},
    "create_endpoint_config": {"EndpointConfigArn": "arn:aws:sagemaker:eu-west-1:123456789012:endpoint-config/sd"},
    "create_endpoint": {"EndpointArn": "arn:aws:sagemaker:eu-west-1:123456789012:endpoint/sd"},
}


def state(status, **fields):
    """Returns a response of describe_endpoint."""
    return {
        "EndpointName": "sd",
        "EndpointArn": MADE["create_endpoint"]["EndpointArn"],
        "EndpointStatus": status,
        "CreationTime": 0,
        "LastModifiedTime": 0,
        **fields,
    }


def expect_created(stubs, *methods):
    """Expects those of the calls that create an endpoint that are in `methods`."""
    for method, parameters in zip(MADE, (MODEL, CONFIGURATION, ENDPOINT), strict=True):
        if method in methods:
            stubs.expect("sagemaker", method, parameters, MADE[method])


def expect_endpoint_removed(stubs):
    """Expects the calls that remove an endpoint, its configuration and its model."""
    stubs.expect("sagemaker", "delete_endpoint", {"EndpointName": "sd"})
    stubs.expect("sagemaker", "describe_endpoint", {"EndpointName": "sd"}, state("Deleting"))
    stubs.fail("sagemaker", "describe_endpoint", "ValidationException", "Could not find endpoint")
    stubs.expect("sagemaker", "delete_endpoint_config", {"EndpointConfigName": "sd"})
    stubs.expect("sagemaker", "delete_model", {"ModelName": "sd"})


def expect_scaling_removed(stubs):
    """Expects the calls that remove auto-scaling."""
    policy = {"PolicyName": "sd-target-tracking", **TARGET}
    stubs.expect("application-autoscaling", "delete_scaling_policy", policy)
    stubs.expect("application-autoscaling", "deregister_scalable_target", TARGET)


def archive(folder, name, top="sd_base"):
    """Writes a small model archive."""
    path = folder / name
    with tarfile.open(path, "w:gz") as file:
        entry = tarfile.TarInfo(f"{top}/config.pbtxt" if top else "config.pbtxt")
        entry.size = 4
        file.addfile(entry, io.BytesIO(b"abcd"))
    return path


def test_upload(stubs, tmp_path):
    names = ["sd_base.tar.gz", "sd_depth.tar.gz"]
    paths = [str(archive(tmp_path, name)) for name in names]
    for name in names:
        put = {"Bucket": "my-bucket", "Key": f"stable-diffusion/{name}", "Body": ANY, "Metadata": MARK}
        stubs.expect("s3", "put_object", {**put, "ChecksumAlgorithm": "CRC32"})
    assert endpoint.main(["upload", "--models", MODELS.rstrip("/"), *paths], stubs.clients) == 0


def test_failed_upload_names_the_archive(stubs, tmp_path, capsys):
    path = archive(tmp_path, "sd_base.tar.gz")
    stubs.fail("s3", "put_object", "AccessDenied", "not yours")
    assert endpoint.main(["upload", "--models", MODELS, str(path)], stubs.clients) == 1
    assert "sd_base.tar.gz" in (text := capsys.readouterr().err) and "not yours" in text


def test_one_bad_archive_prevents_all_uploads(stubs, tmp_path, capsys):
    good = archive(tmp_path, "sd_base.tar.gz")
    text = tmp_path / "text.tar.gz"
    text.write_text("no archive")
    flat = archive(tmp_path, "flat.tar.gz", top="")
    zipped = archive(tmp_path, "sd_base.zip")
    for bad in (text, flat, zipped, tmp_path / "missing.tar.gz"):
        assert endpoint.main(["upload", "--models", MODELS, str(good), str(bad)], stubs.clients) == 1
        assert str(bad) in capsys.readouterr().err


def test_deploy(stubs, no_waiting):
    expect_created(stubs, *MADE)
    stubs.expect("sagemaker", "describe_endpoint", {"EndpointName": "sd"}, state("Creating"))
    stubs.expect("sagemaker", "describe_endpoint", {"EndpointName": "sd"}, state("InService"))
    assert endpoint.main(DEPLOY, stubs.clients) == 0
    assert no_waiting == [30]


def test_deploy_with_other_instances_and_variables(stubs):
    container = {**MODEL["PrimaryContainer"], "Environment": {"SAGEMAKER_TRITON_LOG_VERBOSE": "1", "A": "b=c"}}
    variant = {**CONFIGURATION["ProductionVariants"][0], "InitialInstanceCount": 3, "InstanceType": "ml.g5.4xlarge"}
    stubs.expect("sagemaker", "create_model", {**MODEL, "PrimaryContainer": container}, MADE["create_model"])
    configuration = {**CONFIGURATION, "ProductionVariants": [variant]}
    stubs.expect("sagemaker", "create_endpoint_config", configuration, MADE["create_endpoint_config"])
    expect_created(stubs, "create_endpoint")
    stubs.expect("sagemaker", "describe_endpoint", {"EndpointName": "sd"}, state("InService"))
    further = ["--instances", "3", "--instance-type", "ml.g5.4xlarge"]
    further += ["--env", "SAGEMAKER_TRITON_LOG_VERBOSE=1", "--env", "A=b=c"]
    assert endpoint.main(DEPLOY + further, stubs.clients) == 0


def test_deploy_that_fails_at_the_first_call_removes_nothing(stubs, capsys):
    stubs.fail("sagemaker", "create_model", "ValidationException", "Cannot create already existing model")
    assert endpoint.main(DEPLOY, stubs.clients) == 1
    assert "already existing model" in capsys.readouterr().err


def test_deploy_that_fails_midway_removes_what_it_made(stubs, capsys):
    expect_created(stubs, "create_model", "create_endpoint_config")
    stubs.fail("sagemaker", "create_endpoint", "ResourceLimitExceeded", "ml.g5.xlarge: 0 instances")
    stubs.expect("sagemaker", "delete_endpoint_config", {"EndpointConfigName": "sd"})
    stubs.expect("sagemaker", "delete_model", {"ModelName": "sd"})
    assert endpoint.main(DEPLOY, stubs.clients) == 1
    assert "ml.g5.xlarge: 0 instances" in capsys.readouterr().err


def test_deploy_removes_an_endpoint_that_fails(stubs, capsys):
    expect_created(stubs, *MADE)
    failed = state("Failed", FailureReason="The primary container did not pass the ping health check")
    stubs.expect("sagemaker", "describe_endpoint", {"EndpointName": "sd"}, failed)
    expect_endpoint_removed(stubs)
    assert endpoint.main(DEPLOY, stubs.clients) == 1
    assert "did not pass the ping health check" in capsys.readouterr().err


def test_deploy_reports_what_it_could_not_remove(stubs, capsys):
    expect_created(stubs, *MADE)
    for _ in range(2):
        stubs.expect("sagemaker", "describe_endpoint", {"EndpointName": "sd"}, state("Creating"))
    stubs.fail("sagemaker", "delete_endpoint", "ValidationException", "Cannot update in-progress endpoint")
    assert endpoint.main(DEPLOY, stubs.clients) == 1
    assert "still there: endpoint, configuration, model (endpoint.py delete --name sd)" in capsys.readouterr().err


def test_deploy_that_is_interrupted_removes_what_it_made(stubs, capsys, monkeypatch):
    expect_created(stubs, *MADE)
    stubs.expect("sagemaker", "describe_endpoint", {"EndpointName": "sd"}, state("Creating"))
    expect_endpoint_removed(stubs)
    waits = iter([KeyboardInterrupt])

    def sleep(_):
        for interrupt in waits:
            raise interrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert endpoint.main(DEPLOY, stubs.clients) == 130
    assert "interrupted" in capsys.readouterr().err


def test_autoscale(stubs):
    capacity = {"MinCapacity": 2, "MaxCapacity": 5}
    stubs.expect("application-autoscaling", "register_scalable_target", {**TARGET, **capacity})
    tracking = {
        "TargetValue": 70.0,
        "CustomizedMetricSpecification": {
            "MetricName": "GPUMemoryUtilization",
            "Namespace": "/aws/sagemaker/Endpoints",
            "Dimensions": [{"Name": "EndpointName", "Value": "sd"}, {"Name": "VariantName", "Value": "AllTraffic"}],
            "Statistic": "Average",
            "Unit": "Percent",
        },
        "ScaleInCooldown": 600,
        "ScaleOutCooldown": 300,
    }
    policy = {
        "PolicyName": "sd-target-tracking",
        **TARGET,
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": tracking,
    }
    arn = {"PolicyARN": "arn:aws:autoscaling:eu-west-1:123456789012:scalingPolicy:1", "Alarms": []}
    stubs.expect("application-autoscaling", "put_scaling_policy", policy, arn)
    assert endpoint.main(["autoscale", "--name", "sd", "--max-instances", "5"], stubs.clients) == 0


def test_autoscale_that_fails_midway_removes_the_target(stubs, capsys):
    capacity = {"MinCapacity": 2, "MaxCapacity": 4}
    stubs.expect("application-autoscaling", "register_scalable_target", {**TARGET, **capacity})
    stubs.fail("application-autoscaling", "put_scaling_policy", "FailedResourceAccessException", "no alarms")
    stubs.expect("application-autoscaling", "deregister_scalable_target", TARGET)
    assert endpoint.main(["autoscale", "--name", "sd"], stubs.clients) == 1
    assert "no alarms" in capsys.readouterr().err


def test_delete_removes_auto_scaling_first_and_archives_last(stubs):
    expect_scaling_removed(stubs)
    expect_endpoint_removed(stubs)
    query = {"Bucket": "my-bucket", "Prefix": "stable-diffusion/", "Delimiter": "/"}
    keys = [f"stable-diffusion/{name}" for name in ("sd_base.tar.gz", "readme.txt", "other.tar.gz")]
    first = {"Contents": [{"Key": key} for key in keys], "IsTruncated": True, "NextContinuationToken": "next"}
    stubs.expect("s3", "list_objects_v2", query, first)
    stubs.expect("s3", "head_object", {"Bucket": "my-bucket", "Key": keys[0]}, {"Metadata": MARK})
    stubs.expect("s3", "delete_object", {"Bucket": "my-bucket", "Key": keys[0]})
    # An archive that `upload` did not put there stays.
    stubs.expect("s3", "head_object", {"Bucket": "my-bucket", "Key": keys[2]}, {"Metadata": {}})
    stubs.expect("s3", "list_objects_v2", {**query, "ContinuationToken": "next"}, {"IsTruncated": False})
    assert endpoint.main([*DELETE, "--models", MODELS], stubs.clients) == 0


def test_delete_without_models_leaves_the_archives(stubs):
    expect_scaling_removed(stubs)
    expect_endpoint_removed(stubs)
    assert endpoint.main(DELETE, stubs.clients) == 0


def test_delete_ignores_missing_resources(stubs, capsys):
    for method in ("delete_scaling_policy", "deregister_scalable_target"):
        stubs.fail("application-autoscaling", method, "ObjectNotFoundException")
    stubs.fail("sagemaker", "delete_endpoint", "ValidationException", "Could not find endpoint")
    stubs.fail("sagemaker", "describe_endpoint", "ValidationException", "Could not find endpoint")
    stubs.fail("sagemaker", "delete_endpoint_config", "ValidationException", "Could not find endpoint configuration")
    stubs.expect("sagemaker", "delete_model", {"ModelName": "sd"})
    assert endpoint.main(DELETE, stubs.clients) == 0
    assert "configuration: not found" in capsys.readouterr().err


def test_delete_keeps_what_a_remaining_endpoint_needs(stubs, capsys):
    # Auto-scaling that cannot be removed does not keep the endpoint alive ...
    stubs.fail("application-autoscaling", "delete_scaling_policy", "AccessDeniedException")
    # ... but an endpoint that cannot be removed keeps its configuration, model and archives.
    stubs.fail("sagemaker", "delete_endpoint", "ValidationException", "Cannot update in-progress endpoint")
    assert endpoint.main([*DELETE, "--models", MODELS], stubs.clients) == 1
    left = "still there: scaling policy, scalable target, endpoint, configuration, model, archives"
    assert left in capsys.readouterr().err


INVOKE = ["invoke", "--name", "sd", "--target", "sd_base.tar.gz", "--prompt", "a cat"]
BODY = b'{"inputs": [{"name": "prompt", "shape": [1, 1], "datatype": "BYTES", "data": ["a cat"]}]}'
REQUEST = {
    "EndpointName": "sd",
    "TargetModel": "sd_base.tar.gz",
    "ContentType": "application/json",
    "Body": BODY,
}
# "AAAA" is three zero bytes in base64.
RESPONSE = b'{"parameters": {"seed": 7}, "outputs": [{"name": "generated_image", "data": ["AAAA", "AAAAAAAA"]}]}'


def response(body, kind="application/json"):
    """Returns a response of invoke_endpoint."""
    return {"Body": StreamingBody(io.BytesIO(body), len(body)), "ContentType": kind}


def test_invoke(stubs, tmp_path, capsys):
    stubs.expect("sagemaker-runtime", "invoke_endpoint", REQUEST, response(RESPONSE))
    assert endpoint.main([*INVOKE, "--out", str(tmp_path / "cat.png")], stubs.clients) == 0
    assert (tmp_path / "cat.png").read_bytes() == bytes(3)
    assert (tmp_path / "cat-2.png").read_bytes() == bytes(6)
    assert '"seed": 7' in capsys.readouterr().out


def test_invoke_retries_while_the_model_loads(stubs, tmp_path, no_waiting):
    stubs.fail("sagemaker-runtime", "invoke_endpoint", "ModelNotReadyException")
    stubs.expect("sagemaker-runtime", "invoke_endpoint", REQUEST, response(RESPONSE))
    assert endpoint.main([*INVOKE, "--out", str(tmp_path / "cat.png")], stubs.clients) == 0
    assert no_waiting == [10]


def test_invoke_gives_up_after_wait(stubs, capsys, monkeypatch):
    now = iter(range(0, 1000, 60))
    monkeypatch.setattr("endpoint.time.monotonic", lambda: next(now))
    for _ in range(3):
        stubs.fail("sagemaker-runtime", "invoke_endpoint", "ModelNotReadyException", "still loading")
    assert endpoint.main([*INVOKE, "--wait", "120"], stubs.clients) == 1
    assert "still loading" in capsys.readouterr().err


def test_invoke_reports_the_error_of_the_model(stubs, tmp_path, capsys):
    fields = {"OriginalStatusCode": 400, "OriginalMessage": '{"error": "gen_args: `steps` is not known"}'}
    stubs.fail("sagemaker-runtime", "invoke_endpoint", "ModelError", **fields)
    assert endpoint.main([*INVOKE, "--out", str(tmp_path / "cat.png")], stubs.clients) == 1
    assert "the model returned 400" in (text := capsys.readouterr().err) and "`steps` is not known" in text
    assert not (tmp_path / "cat.png").exists()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"outputs": [{"name": "generated_image"}]}',
        b'{"outputs": [{"name": "generated_image", "data": ["%"]}]}',
    ],
)
def test_invoke_with_an_unexpected_response_fails(stubs, tmp_path, capsys, body):
    stubs.expect("sagemaker-runtime", "invoke_endpoint", REQUEST, response(body))
    assert endpoint.main([*INVOKE, "--out", str(tmp_path / "cat.png")], stubs.clients) == 1
    assert "unexpected response" in capsys.readouterr().err


def test_request_beyond_the_limit_of_sagemaker_is_not_sent(stubs, tmp_path, capsys):
    (tmp_path / "large.png").write_bytes(bytes(5_000_000))
    assert endpoint.main([*INVOKE, "--image", str(tmp_path / "large.png")], stubs.clients) == 1
    assert "at most 6291456 bytes" in capsys.readouterr().err

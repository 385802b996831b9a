"""Creates, uses and deletes a SageMaker multi-model endpoint for packed archives.

    endpoint.py upload    --models s3://bucket/stable-diffusion/ sd_base.tar.gz sd_depth.tar.gz
    endpoint.py deploy    --name sd --models s3://bucket/stable-diffusion/ --image IMAGE --role ROLE
    endpoint.py autoscale --name sd --max-instances 4
    endpoint.py invoke    --name sd --target sd_base.tar.gz --prompt "a lighthouse at dusk" --out lighthouse.png
    endpoint.py delete    --name sd --models s3://bucket/stable-diffusion/

With --dry-run, the program checks each call of boto3 against the service's description and prints it, without
credentials or network. The model, the endpoint configuration and the endpoint all have the name --name.
"""

import base64
import json
import re
import sys
import tarfile
import time

import botocore.session
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

import arguments
from bodies import binary_body, images_of, json_body
from calls import MARK, Calls, DeployError, words

VARIANT = "AllTraffic"
SCALING = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
# Seconds between two tries while SageMaker loads the model.
RETRY_SECONDS = 10


def upload(calls, options):
    """Checks all archives, then uploads them to --models."""
    for path in options.archives:
        check_archive(path)
    bucket, prefix = options.models
    for path in options.archives:
        calls.upload(path, bucket, prefix + path.name)


def check_archive(path):
    """Checks that an archive starts with a folder. `triton-diffusion pack` checked the contents."""
    if not re.fullmatch(arguments.ARCHIVE, path.name):
        raise DeployError(
            f"{path}: expected a name of letters, digits, dots, hyphens and underscores that ends in .tar.gz"
        )
    try:
        with tarfile.open(path, "r:gz") as archive:
            first = archive.next()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DeployError(f"{path}: cannot read as .tar.gz: {error}") from error
    parts = [] if first is None else [part for part in first.name.split("/") if part not in ("", ".")]
    if first is None or not (first.isdir() or len(parts) > 1):
        raise DeployError(f"{path}: expected one folder, that of the model, and nothing next to it")


def deploy(calls, options):
    """Creates model, endpoint configuration and endpoint, and waits for the endpoint. After a failure, removes them."""
    name = options.name
    container = {
        "Image": options.image,
        "Mode": "MultiModel",
        "ModelDataUrl": "s3://{}/{}".format(*options.models),
        "Environment": {"SAGEMAKER_TRITON_LOG_VERBOSE": "false", **dict(options.env)},
    }
    variant = {
        "VariantName": VARIANT,
        "ModelName": name,
        "InitialInstanceCount": options.instances,
        "InstanceType": options.instance_type,
        **({"InferenceAmiVersion": options.ami} if options.ami else {}),
    }
    removal = endpoint_removal(name, options.timeout)
    made = 0
    try:
        model = {"ModelName": name, "PrimaryContainer": container, "ExecutionRoleArn": options.role}
        calls.call("sagemaker", "create_model", **model)
        made = 1
        calls.call("sagemaker", "create_endpoint_config", EndpointConfigName=name, ProductionVariants=[variant])
        made = 2
        calls.call("sagemaker", "create_endpoint", EndpointName=name, EndpointConfigName=name)
        made = len(removal)
        calls.wait("sagemaker", "endpoint_in_service", options.timeout, EndpointName=name)
    # Also after Ctrl-C, because forgotten instances cost money.
    except BaseException as error:
        if calls.dry_run:
            raise
        left = remove(calls, removal[len(removal) - made :])
        hint = f"; still there: {', '.join(left)} (endpoint.py delete --name {name})" if left else ""
        if not isinstance(error, Exception):
            print(hint.removeprefix("; "), file=sys.stderr)
            raise
        raise DeployError(f"{words(error)}{hint}") from error


def autoscale(calls, options):
    """Adds auto-scaling by a metric of the instances. After a failure, removes it."""
    target = {**SCALING, "ResourceId": resource(options.name)}
    dimensions = [{"Name": "EndpointName", "Value": options.name}, {"Name": "VariantName", "Value": VARIANT}]
    metric = {
        "MetricName": options.metric,
        "Namespace": "/aws/sagemaker/Endpoints",
        "Dimensions": dimensions,
        "Statistic": "Average",
        "Unit": "Percent",
    }
    tracking = {
        "TargetValue": options.target_value,
        "CustomizedMetricSpecification": metric,
        "ScaleInCooldown": options.scale_in_cooldown,
        "ScaleOutCooldown": options.scale_out_cooldown,
    }
    capacity = {"MinCapacity": options.min_instances, "MaxCapacity": options.max_instances}
    calls.call("application-autoscaling", "register_scalable_target", **target, **capacity)
    try:
        calls.call(
            "application-autoscaling",
            "put_scaling_policy",
            PolicyName=policy(options.name),
            **target,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=tracking,
        )
    except (BotoCoreError, ClientError) as error:
        remove(calls, scaling_removal(options.name)[1:])
        raise DeployError(words(error)) from error


def resource(name):
    """Returns the name of an endpoint's variant in application auto-scaling."""
    return f"endpoint/{name}/variant/{VARIANT}"


def policy(name):
    """Returns the name of an endpoint's scaling policy."""
    return f"{name}-target-tracking"


def scaling_removal(name):
    """Returns the steps that remove auto-scaling, in order: (name, call)."""
    target = {**SCALING, "ResourceId": resource(name)}
    service, named = "application-autoscaling", {"PolicyName": policy(name)}
    return [
        ("scaling policy", lambda calls: calls.call(service, "delete_scaling_policy", **named, **target)),
        ("scalable target", lambda calls: calls.call(service, "deregister_scalable_target", **target)),
    ]


def endpoint_removal(name, timeout):
    """Returns the steps that remove an endpoint, in order: its configuration and model must outlive it."""
    return [
        ("endpoint", lambda calls: calls.call("sagemaker", "delete_endpoint", EndpointName=name)),
        ("endpoint", lambda calls: calls.wait("sagemaker", "endpoint_deleted", timeout, EndpointName=name)),
        ("configuration", lambda calls: calls.call("sagemaker", "delete_endpoint_config", EndpointConfigName=name)),
        ("model", lambda calls: calls.call("sagemaker", "delete_model", ModelName=name)),
    ]


def remove(calls, steps):
    """Takes the steps up to the first failure; a missing resource is no failure. Returns the names of what is left."""
    for index, (what, step) in enumerate(steps):
        try:
            step(calls)
        except (BotoCoreError, ClientError, Boto3Error) as error:
            if is_gone(error):
                print(f"{what}: not found", file=sys.stderr)
                continue
            print(f"{what} not removed: {words(error)}", file=sys.stderr)
            return list(dict.fromkeys(what for what, _ in steps[index:]))
    return []


def is_gone(error):
    """Returns whether a removal failed because the resource does not exist."""
    if not isinstance(error, ClientError):
        return False
    code, message = error.response["Error"].get("Code"), error.response["Error"].get("Message", "")
    # SageMaker has no specific code for a missing resource.
    return code == "ObjectNotFoundException" or (code == "ValidationException" and "Could not find" in message)


def delete(calls, options):
    """Removes everything that `deploy` and `autoscale` created, and with --models the uploaded archives."""
    chain = endpoint_removal(options.name, options.timeout)
    if options.models is not None:
        chain.append(("archives", lambda calls: delete_archives(calls, *options.models)))
    # A failure to remove auto-scaling must not keep the endpoint, which costs money.
    left = remove(calls, scaling_removal(options.name)) + remove(calls, chain)
    if left:
        raise DeployError(f"still there: {', '.join(left)}; run delete again after fixing the cause")


def delete_archives(calls, bucket, prefix):
    """Deletes the archives directly below a prefix that have the metadata of `upload`."""
    query = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    while True:
        page = calls.call("s3", "list_objects_v2", **query)
        if calls.dry_run:
            print(f"# then for each archive there with the metadata {MARK}: s3.head_object, s3.delete_object")
            return
        for key in [entry["Key"] for entry in page.get("Contents", ()) if entry["Key"].endswith(".tar.gz")]:
            metadata = calls.call("s3", "head_object", Bucket=bucket, Key=key).get("Metadata", {})
            if MARK.items() <= metadata.items():
                calls.call("s3", "delete_object", Bucket=bucket, Key=key)
        if not page.get("IsTruncated"):
            return
        query["ContinuationToken"] = page["NextContinuationToken"]


def invoke(calls, options):
    """Sends one request to one model of the endpoint and writes the images to files."""
    inputs = {"prompt": options.prompt, "negative_prompt": options.negative_prompt, "gen_args": options.gen_args}
    for name in ("image", "mask_image"):
        path = getattr(options, name)
        inputs[name] = None if path is None else base64.b64encode(path.read_bytes()).decode()
    body, kind = (binary_body if options.binary else json_body)({k: v for k, v in inputs.items() if v is not None})
    limit = botocore.session.get_session().get_service_model("sagemaker-runtime").shape_for("BodyBlob").metadata["max"]
    if len(body) > limit:
        raise DeployError(f"expected a request of at most {limit} bytes, got {len(body)}")
    request = {"EndpointName": options.name, "TargetModel": options.target, "ContentType": kind, "Body": body}
    deadline = time.monotonic() + options.wait
    while True:
        try:
            response = calls.call("sagemaker-runtime", "invoke_endpoint", **request)
            break
        except ClientError as error:
            if error.response["Error"].get("Code") != "ModelNotReadyException" or time.monotonic() > deadline:
                raise
            print(f"SageMaker loads {options.target}", file=sys.stderr)
            time.sleep(RETRY_SECONDS)
    if calls.dry_run:
        return
    images, parameters = images_of(response["Body"].read(), response["ContentType"])
    for index, image in enumerate(images, 1):
        path = options.out if index == 1 else options.out.with_stem(f"{options.out.stem}-{index}")
        path.write_bytes(image)
        print(f"wrote {path} {json.dumps(parameters)}")


COMMANDS = {"upload": upload, "deploy": deploy, "autoscale": autoscale, "invoke": invoke, "delete": delete}


def main(command_line=None, clients=None):
    """Runs one command; returns the exit status. `clients` maps services to boto3 clients."""
    options = arguments.parse(__doc__, COMMANDS, command_line)
    calls = Calls(options.region, options.profile, options.dry_run, clients)
    try:
        COMMANDS[options.command](calls, options)
    except (DeployError, OSError, BotoCoreError, ClientError, Boto3Error) as error:
        print(f"endpoint.py {options.command}: {words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"endpoint.py {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

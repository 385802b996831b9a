"""Parses the command line of endpoint.py."""

import argparse
import json
import pathlib
import re

ARCHIVE = r"[A-Za-z0-9_][A-Za-z0-9._-]*\.tar\.gz"
# SageMaker's AMI with NVIDIA driver 580, the oldest for CUDA 13. The default hosts have drivers 470 to 550.
GPU_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"


def matching(pattern, what):
    """Returns a type for argparse: text that matches the whole pattern."""

    def parse(text):
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return text

    return parse


endpoint_name = matching(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}", "a name of at most 63 letters, digits and hyphens")
archive_name = matching(ARCHIVE, "an archive's name such as sd_base.tar.gz")
role_arn = matching(r"arn:aws[a-z-]*:iam::\d{12}:role/\S+", "a role such as arn:aws:iam::123456789012:role/NAME")
instance_type = matching(r"ml\.[a-z0-9-]+\.[a-z0-9]+", "an instance type such as ml.g5.xlarge")
image_name = matching(r"\S{1,255}", "the name of a container image")
ami_version = matching(r"[A-Za-z0-9._-]*", f"the name of an AMI such as {GPU_AMI}")


def default_ami(instance_type):
    """Returns the AMI for an instance type: `GPU_AMI` for an NVIDIA GPU, else an empty text.

    SageMaker's families with NVIDIA GPUs are called g or p and a number, such as ml.g5 and ml.p4de.
    """
    return GPU_AMI if re.match(r"ml\.[gp]\d", instance_type) else ""


def s3_prefix(text):
    """Splits s3://bucket/prefix/ into (bucket, prefix); the prefix ends with a slash."""
    found = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form s3://bucket/prefix/")
    prefix = (found[2] or "").strip("/")
    return found[1], prefix + "/" if prefix else ""


def variable(text):
    """Splits NAME=VALUE into (name, value)."""
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def json_object(text):
    """Returns the text if it is a JSON object."""
    try:
        good = isinstance(json.loads(text), dict)
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError("not a JSON object")
    return text


def count(text):
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def percent(text):
    """Parses a number above 0. It may exceed 100: an instance with several GPUs reports their sum."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 10_000.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage")
    return value


def parse(description, commands, arguments=None):
    """Parses the options of one command. `commands` maps names to functions, whose docstrings are the help."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dry-run", action="store_true", help="check and print the calls without making them")
    common.add_argument("--region", help="AWS region (default: from the environment or the profile)")
    common.add_argument("--profile", help="AWS profile")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", type=endpoint_name, required=True, help="name of endpoint, configuration and model")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="|".join(commands))

    def add(command, *parents):
        summary = commands[command].__doc__.splitlines()[0]
        return subparsers.add_parser(command, parents=[common, *parents], help=summary, description=summary)

    upload = add("upload")
    upload.add_argument("--models", type=s3_prefix, required=True, metavar="S3_URL", help="s3://bucket/prefix/")
    upload.add_argument("archives", type=pathlib.Path, nargs="+", help="archives written by triton-diffusion pack")

    deploy = add("deploy", named)
    deploy.add_argument("--models", type=s3_prefix, required=True, metavar="S3_URL", help="folder of the archives")
    deploy.add_argument(
        "--image", type=image_name, required=True, help="container image in ECR: SageMaker's Triton, this backend"
    )
    deploy.add_argument(
        "--role",
        type=role_arn,
        required=True,
        help="role that may read container image and archives",
    )
    deploy.add_argument("--instance-type", type=instance_type, default="ml.g5.xlarge", help="default: %(default)s")
    ami = f"InferenceAmiVersion of the hosts, empty for SageMaker's default (default: {GPU_AMI} if there is a GPU)"
    deploy.add_argument("--ami", type=ami_version, metavar="VERSION", help=ami)
    deploy.add_argument("--instances", type=count, default=2, help="default: %(default)s")
    environment = "variable of the container; may be repeated"
    deploy.add_argument("--env", type=variable, action="append", default=[], metavar="NAME=VALUE", help=environment)

    autoscale = add("autoscale", named)
    autoscale.add_argument("--min-instances", type=count, default=2, help="default: %(default)s")
    autoscale.add_argument("--max-instances", type=count, default=4, help="default: %(default)s")
    metrics = ("GPUMemoryUtilization", "GPUUtilization")
    autoscale.add_argument("--metric", choices=metrics, default=metrics[0], help="default: %(default)s")
    autoscale.add_argument("--target-value", type=percent, default=70.0, metavar="PERCENT", help="default: %(default)s")
    for name, seconds in (("--scale-in-cooldown", 600), ("--scale-out-cooldown", 300)):
        autoscale.add_argument(name, type=count, default=seconds, metavar="SECONDS", help="default: %(default)s")

    invoke = add("invoke", named)
    invoke.add_argument("--target", type=archive_name, required=True, metavar="ARCHIVE", help="such as sd_base.tar.gz")
    invoke.add_argument("--prompt", required=True)
    invoke.add_argument("--negative-prompt")
    invoke.add_argument("--image", type=pathlib.Path, metavar="FILE")
    invoke.add_argument("--mask-image", type=pathlib.Path, metavar="FILE")
    invoke.add_argument("--gen-args", type=json_object, metavar="JSON", help="such as '{\"seed\": 1}'")
    invoke.add_argument("--binary", action="store_true", help="send and receive Triton's binary format")
    invoke.add_argument("--out", type=pathlib.Path, default=pathlib.Path("generated.png"), help="default: %(default)s")
    wait = "how long to retry while SageMaker loads the model (default: %(default)s)"
    invoke.add_argument("--wait", type=count, default=600, metavar="SECONDS", help=wait)

    delete = add("delete", named)
    archives = "also delete the archives that `upload` put there"
    delete.add_argument("--models", type=s3_prefix, metavar="S3_URL", help=archives)
    for command in (deploy, delete):
        timeout = "how long to wait for the endpoint (default: %(default)s)"
        command.add_argument("--timeout", type=count, default=60, metavar="MINUTES", help=timeout)

    options = parser.parse_args(arguments)
    if options.command == "autoscale" and options.min_instances > options.max_instances:
        autoscale.error("--min-instances is larger than --max-instances")
    if options.command == "deploy" and options.ami is None:
        options.ami = default_ami(options.instance_type)
    return options

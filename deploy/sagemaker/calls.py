"""Calls of boto3 that are made, or in a dry run checked and printed."""

import json
import sys

import boto3
import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError
from botocore.validate import ParamValidator

# S3 metadata of every archive that `upload` has put there: `delete` takes away these and no others.
MARK = {"uploaded-by": "triton-diffusion"}
# Seconds between two looks at an endpoint.
POLL_SECONDS = 30
# A model may take 60 s for an answer; the SDK advises its callers to wait 70. The SDK's own retries are off: they would
# send a request again while its picture is still being made.
CLIENT_CONFIG = {"sagemaker-runtime": Config(read_timeout=70, retries={"total_max_attempts": 1})}


class DeployError(Exception):
    """A step that failed, in words for the user."""


class Calls:
    """Makes calls of boto3, or in a dry run checks and prints them. `clients`: service -> client, made when missing."""

    def __init__(self, region=None, profile=None, dry_run=False, clients=None):
        self.region, self.profile, self.dry_run = region, profile, dry_run
        self.clients = dict(clients or {})

    def client(self, service):
        """The boto3 client of a service."""
        if service not in self.clients:
            session = boto3.Session(region_name=self.region, profile_name=self.profile)
            self.clients[service] = session.client(service, config=CLIENT_CONFIG.get(service))
        return self.clients[service]

    def call(self, service, method, **parameters):
        """One call; its reply, or {} in a dry run."""
        if self.dry_run:
            check(service, method, parameters)
            show(f"{service}.{method}", parameters)
            return {}
        print(f"{service}.{method}", file=sys.stderr)
        return getattr(self.client(service), method)(**parameters)

    def wait(self, service, waiter, minutes, **parameters):
        """Waits for a state that botocore's waiter of that name looks for; WaiterError if it does not come."""
        config = {"Delay": POLL_SECONDS, "MaxAttempts": max(1, minutes * 60 // POLL_SECONDS)}
        if self.dry_run:
            show(f'{service}.get_waiter("{waiter}").wait', {**parameters, "WaiterConfig": config})
            return
        print(f"{service}: waiting for {waiter}", file=sys.stderr)
        self.client(service).get_waiter(waiter).wait(**parameters, WaiterConfig=config)

    def upload(self, path, bucket, key):
        """A file to S3, in parts where it is large."""
        parameters = {"Filename": str(path), "Bucket": bucket, "Key": key, "ExtraArgs": {"Metadata": MARK}}
        if self.dry_run:
            check("s3", "put_object", {"Bucket": bucket, "Key": key, **parameters["ExtraArgs"]})
            show("s3.upload_file", parameters)
            return
        print(f"s3.upload_file {path} ({path.stat().st_size / 1e6:,.0f} MB)", file=sys.stderr)
        self.client("s3").upload_file(**parameters)


def check(service, method, parameters):
    """Fails if botocore's description of the service has no such call, or other parameters for it."""
    model = botocore.session.get_session().get_service_model(service)
    operation = next((name for name in model.operation_names if xform_name(name) == method), None)
    if operation is None:
        raise DeployError(f"{service} has no call {method}")
    report = ParamValidator().validate(parameters, model.operation_model(operation).input_shape)
    if report.has_errors():
        raise DeployError(f"{service}.{method}: {report.generate_report()}")


def show(call, parameters):
    """Prints a call as Python would write it; long bytes are cut."""
    print(f"{call}(")
    for name, value in parameters.items():
        if isinstance(value, bytes) and len(value) > 400:
            text = f"{value[:400]!r},  # {len(value)} bytes in all"
        else:
            # JSON's way to write lists, objects, texts and numbers is Python's too.
            structured = isinstance(value, dict | list)
            text = (json.dumps(value, indent=4).replace("\n", "\n    ") if structured else repr(value)) + ","
        print(f"    {name}={text}")
    print(")")


def words(error):
    """An error of boto3 in one line."""
    if isinstance(error, WaiterError):
        last = error.last_response or {}
        reason = last.get("FailureReason")
        return f"{error}{f' ({reason})' if reason else ''}"
    if isinstance(error, ClientError) and error.response["Error"].get("Code") == "ModelError":
        return f"the model answered {error.response.get('OriginalStatusCode')}: {error.response.get('OriginalMessage')}"
    return str(error)

"""Makes calls of boto3; a dry run checks and prints them instead."""

import json
import sys

import boto3
import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError
from botocore.validate import ParamValidator

# S3 metadata of the archives that `upload` put there: `delete` deletes only these.
MARK = {"uploaded-by": "triton-diffusion"}
# Seconds between two checks of an endpoint.
POLL_SECONDS = 30
# A model may take 60 s to respond; the SDK advises callers to wait 70 s. The SDK's retries are off: they would send a
# request again while the model still generates its image.
CLIENT_CONFIG = {"sagemaker-runtime": Config(read_timeout=70, retries={"total_max_attempts": 1})}


class DeployError(Exception):
    """A step failed; the message is for the user."""


class Calls:
    """Makes calls of boto3, or in a dry run checks and prints them.

    `clients` maps services to clients; missing clients are created.
    """

    def __init__(self, region=None, profile=None, dry_run=False, clients=None):
        self.region, self.profile, self.dry_run = region, profile, dry_run
        self.clients = dict(clients or {})

    def client(self, service):
        """Returns the boto3 client of a service."""
        if service not in self.clients:
            session = boto3.Session(region_name=self.region, profile_name=self.profile)
            self.clients[service] = session.client(service, config=CLIENT_CONFIG.get(service))
        return self.clients[service]

    def call(self, service, method, **parameters):
        """Makes one call; returns its response, or {} in a dry run."""
        if self.dry_run:
            check(service, method, parameters)
            show(f"{service}.{method}", parameters)
            return {}
        print(f"{service}.{method}", file=sys.stderr)
        return getattr(self.client(service), method)(**parameters)

    def wait(self, service, waiter, minutes, **parameters):
        """Waits with botocore's waiter of this name; raises WaiterError after a failure or too many minutes."""
        config = {"Delay": POLL_SECONDS, "MaxAttempts": max(1, minutes * 60 // POLL_SECONDS)}
        if self.dry_run:
            show(f'{service}.get_waiter("{waiter}").wait', {**parameters, "WaiterConfig": config})
            return
        print(f"{service}: waiting for {waiter}", file=sys.stderr)
        self.client(service).get_waiter(waiter).wait(**parameters, WaiterConfig=config)

    def upload(self, path, bucket, key):
        """Uploads a file to S3, in parts if it is large."""
        parameters = {"Filename": str(path), "Bucket": bucket, "Key": key, "ExtraArgs": {"Metadata": MARK}}
        if self.dry_run:
            check("s3", "put_object", {"Bucket": bucket, "Key": key, **parameters["ExtraArgs"]})
            show("s3.upload_file", parameters)
            return
        print(f"s3.upload_file {path} ({path.stat().st_size / 1e6:,.0f} MB)", file=sys.stderr)
        self.client("s3").upload_file(**parameters)


def check(service, method, parameters):
    """Raises DeployError unless botocore's description of the service has this call with these parameters."""
    model = botocore.session.get_session().get_service_model(service)
    operation = next((name for name in model.operation_names if xform_name(name) == method), None)
    if operation is None:
        raise DeployError(f"{service} has no call {method}")
    report = ParamValidator().validate(parameters, model.operation_model(operation).input_shape)
    if report.has_errors():
        raise DeployError(f"{service}.{method}: {report.generate_report()}")


def show(call, parameters):
    """Prints a call as Python code; truncates long bytes."""
    print(f"{call}(")
    for name, value in parameters.items():
        if isinstance(value, bytes) and len(value) > 400:
            text = f"{value[:400]!r},  # {len(value)} bytes in total"
        else:
            # Lists, objects, texts and numbers look the same in JSON and Python.
            structured = isinstance(value, dict | list)
            text = (json.dumps(value, indent=4).replace("\n", "\n    ") if structured else repr(value)) + ","
        print(f"    {name}={text}")
    print(")")


def words(error):
    """Returns the message of an error of boto3, in one line."""
    if isinstance(error, WaiterError):
        last = error.last_response or {}
        reason = last.get("FailureReason")
        return f"{error}{f' ({reason})' if reason else ''}"
    if isinstance(error, ClientError) and error.response["Error"].get("Code") == "ModelError":
        return f"the model returned {error.response.get('OriginalStatusCode')}: {error.response.get('OriginalMessage')}"
    return str(error)

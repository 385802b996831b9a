"""Clients of boto3 with stubbed calls: botocore checks each call against the service's description, and sends none."""

import pathlib
import sys

import boto3
import pytest
from botocore.stub import Stubber

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "deploy" / "sagemaker"))

SERVICES = ("s3", "sagemaker", "sagemaker-runtime", "application-autoscaling")


class Stubs:
    """Stubbed clients. `expect` plans a call, `fail` a call that fails; `made` are the calls so far."""

    def __init__(self, clients):
        self.clients = clients
        self.stubbers = {service: Stubber(client) for service, client in clients.items()}
        self.planned, self.made = [], []

    def __enter__(self):
        for service, stubber in self.stubbers.items():
            # "provide-client-params.<service>.<operation>" comes before the stub checks the parameters.
            self.clients[service].meta.events.register("provide-client-params", self._note, unique_id="note")
            stubber.activate()
        return self

    def __exit__(self, *_):
        for service, stubber in self.stubbers.items():
            self.clients[service].meta.events.unregister("provide-client-params", unique_id="note")
            stubber.deactivate()

    def _note(self, event_name, **_):
        self.made.append(event_name.rpartition(".")[2])

    def expect(self, service, method, parameters, reply=None):
        """Plans the next call of this service, with exactly these parameters."""
        self.stubbers[service].add_response(method, reply or {}, parameters)
        self._plan(service, method)

    def fail(self, service, method, code, message="no", **fields):
        """Plans the next call of this service, which fails."""
        self.stubbers[service].add_client_error(method, code, message, modeled_fields=fields or None)
        self._plan(service, method)

    def _plan(self, service, method):
        self.planned.append(self.clients[service].meta.method_to_api_mapping[method])

    def check(self):
        """Checks that the planned calls were made, across services in the order of the plan, and no others."""
        assert self.made == self.planned
        for stubber in self.stubbers.values():
            stubber.assert_no_pending_responses()


@pytest.fixture(scope="session")
def clients():
    """Creates a client of each service with invalid keys, once, because botocore is slow."""
    session = boto3.Session(aws_access_key_id="none", aws_secret_access_key="none", region_name="eu-west-1")
    return {service: session.client(service) for service in SERVICES}


@pytest.fixture
def stubs(clients):
    """Yields stubbed clients; checks the planned calls at the end of the test."""
    with Stubs(clients) as stubbed:
        yield stubbed
        stubbed.check()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Replaces `time.sleep`; returns the list of the seconds that botocore and the script would have slept."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept

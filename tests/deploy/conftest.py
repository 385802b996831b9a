"""Clients of boto3 whose calls are stubbed: each is held to botocore's description of the service, and none leaves."""

import pathlib
import sys

import boto3
import pytest
from botocore.stub import Stubber

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "deploy" / "sagemaker"))

SERVICES = ("s3", "sagemaker", "sagemaker-runtime", "application-autoscaling")


class Stubs:
    """The stubbed clients. `expect` plans a call, `fail` one that is answered with an error; `made` are those made."""

    def __init__(self, clients):
        self.clients = clients
        self.stubbers = {service: Stubber(client) for service, client in clients.items()}
        self.planned, self.made = [], []

    def __enter__(self):
        for service, stubber in self.stubbers.items():
            # "provide-client-params.<service>.<operation>" comes before the stub's own look at the parameters.
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
        """The next call of this service must be this one, with exactly these parameters."""
        self.stubbers[service].add_response(method, reply or {}, parameters)
        self._plan(service, method)

    def fail(self, service, method, code, message="no", **fields):
        """The next call of this service must be this one; it is answered with an error."""
        self.stubbers[service].add_client_error(method, code, message, modeled_fields=fields or None)
        self._plan(service, method)

    def _plan(self, service, method):
        self.planned.append(self.clients[service].meta.method_to_api_mapping[method])

    def check(self):
        """All planned calls were made, over all services in the order of the plan, and no others."""
        assert self.made == self.planned
        for stubber in self.stubbers.values():
            stubber.assert_no_pending_responses()


@pytest.fixture(scope="session")
def clients():
    """A client of each service, with keys that are none; botocore takes a while to make one."""
    session = boto3.Session(aws_access_key_id="none", aws_secret_access_key="none", region_name="eu-west-1")
    return {service: session.client(service) for service in SERVICES}


@pytest.fixture
def stubs(clients):
    """Stubbed clients; at the end of the test every planned call must have been made, in order."""
    with Stubs(clients) as stubbed:
        yield stubbed
        stubbed.check()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Neither botocore's waiters nor the script sleep. Gives the list of the seconds that they would have slept."""
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept

"""Requests that wait: who passes whom, time limits, and queue time."""

import time

import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from client import input_tensors
from support import config, wait_for

CALLS = "diffusion_unet_calls_total"
LATE = "diffusion_deadlines_passed_total"
# Long enough to be ended while it runs.
LONG = dict(
    prompt="a very long way",
    gen_args={"num_inference_steps": 900, "seed": 5, "scheduler": "DDIMScheduler", "height": 128, "width": 128},
)
SHORT = dict(prompt="short", gen_args={"num_inference_steps": 2, "seed": 1})


@pytest.fixture(scope="module")
def model(repository, client):
    repository.add("narrow", config({"max_unet_batch_size": "4"}))
    client.load("narrow")
    return "narrow"


@pytest.fixture
def long_request(client, model):
    """A request that runs, and ends with the test."""
    before = client.counter(CALLS, model)
    call, future = client.start(model, **LONG)
    wait_for(lambda: client.counter(CALLS, model) > before, 30, "the long request runs")
    yield future
    call.cancel()
    with pytest.raises(InferenceServerException):
        future.result(timeout=30)


def test_short_request_passes_a_wide_one_that_waits(client, model, long_request):
    _, wide = client.start(model, prompt="wide", gen_args={"num_images_per_prompt": 2, "num_inference_steps": 20})
    time.sleep(0.1)
    client.infer(model, **SHORT)
    assert not wide.done() and not long_request.done()


def test_timeout_of_the_request_ends_it(client, model):
    late = client.counter(LATE, model)
    with pytest.raises(InferenceServerException) as error:
        client.grpc.infer(model, input_tensors(grpcclient, LONG), timeout=300_000)
    assert error.value.status() == "StatusCode.UNAVAILABLE"
    assert "the time limit of 0.300 s passed after " in error.value.message()
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, **{**LONG, "gen_args": {**LONG["gen_args"], "timeout_ms": 250}})
    assert "the time limit of 0.250 s passed after " in error.value.message()
    wait_for(lambda: client.counter(LATE, model) == late + 2, 5, "both are counted")
    client.infer(model, **SHORT)


def test_queue_time_of_a_request_that_waited(client, model):
    def queue_ns():
        statistics = client.http.get_inference_statistics(model)["model_stats"][0]["inference_stats"]
        return statistics["queue"]["ns"]

    before = client.counter(CALLS, model)
    call, long = client.start(model, **LONG)
    wait_for(lambda: client.counter(CALLS, model) > before, 30, "the long request runs")
    waited = queue_ns()
    _, wide = client.start(model, prompt="wide", gen_args={"num_images_per_prompt": 2, "num_inference_steps": 2})
    time.sleep(1)
    call.cancel()
    with pytest.raises(InferenceServerException):
        long.result(timeout=30)
    wide.result(timeout=30)
    wait_for(lambda: queue_ns() - waited > 900_000_000, 5, "the wait is queue time")

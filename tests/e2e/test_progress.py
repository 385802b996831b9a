"""Progress of requests: over a gRPC stream, over server-sent events, and with readers that do not read."""

import json
import socket
import time
import urllib.request

import pytest
import tritonclient.grpc as grpcclient

from client import input_tensors, parameter, read_response, stream
from support import config, wait_for

STEPS = 60
GEN_ARGS = {"num_inference_steps": STEPS, "seed": 3, "scheduler": "DDIMScheduler", "progress_every": 10}
DECOUPLED = "model_transaction_policy { decoupled: true }\n"


@pytest.fixture(scope="module")
def model(repository, client):
    repository.add("told", config() + DECOUPLED)
    repository.add("plain", config())
    client.load("told", "plain")
    return "told"


def streamed(server, model, **inputs):
    """Returns the responses before the final one, and the final one."""
    *before, last = stream(server.grpc_address, model, inputs)
    return before, last


def test_progress_comes_in_order_over_a_stream(server, client, model):
    before, last = streamed(server, model, prompt="a cat", gen_args=GEN_ARGS)
    steps = [parameter(result, "step") for result in before]
    assert steps == sorted(set(steps)) and 0 < len(steps) < 6
    assert set(steps) <= set(range(0, STEPS, 10))
    assert {parameter(result, "steps") for result in before} == {STEPS}
    assert all(parameter(result, "eta_ms") >= 0 for result in before if parameter(result, "step"))
    plain = client.infer("plain", prompt="a cat", gen_args={**GEN_ARGS, "progress_every": 0})
    assert read_response(last).image[-1000:] == plain.image[-1000:]


def test_progress_comes_as_server_sent_events(server, model):
    body = {"prompt": "a cat", "gen_args": json.dumps(GEN_ARGS)}
    url = f"http://{server.http_address}/v2/models/{model}/generate_stream"
    request = urllib.request.Request(url, data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert reply.headers["Content-Type"].startswith("text/event-stream")
        lines = [line.decode() for line in reply if line.startswith(b"data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    *before, last = events
    assert before and "generated_image" in last and last["seed"] == 3
    steps = [event["step"] for event in before]
    assert steps == sorted(steps) and not any("generated_image" in event for event in before)


def test_request_that_waits_hears_of_its_position(repository, server, client, model):
    repository.add("narrow_told", config({"max_unet_batch_size": "2"}) + DECOUPLED)
    client.load("narrow_told")
    long = {"num_inference_steps": 900, "scheduler": "DDIMScheduler", "height": 128, "width": 128}
    with grpcclient.InferenceServerClient(server.grpc_address) as running:
        running.start_stream(lambda result, error: None)
        inputs = input_tensors(grpcclient, {"prompt": "long", "gen_args": long})
        running.async_stream_infer("narrow_told", inputs)
        calls = "diffusion_unet_calls_total"
        wait_for(lambda: client.counter(calls, "narrow_told") > 0, 30, "the long request runs")
        before, last = streamed(server, "narrow_told", prompt="a cat", gen_args=GEN_ARGS)
        running.stop_stream(cancel_requests=True)
    assert parameter(before[0], "queue_position") == 0 and parameter(before[0], "step") == 0
    assert parameter(last, "seed") == 3


def test_reader_that_does_not_read_slows_nobody(server, client, model):
    body = json.dumps({"prompt": "a cat", "gen_args": json.dumps({**GEN_ARGS, "progress_every": 1})}).encode()
    host, port = server.http_address.split(":")
    silent = []
    for _ in range(4):
        connection = socket.create_connection((host, int(port)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        head = (
            f"POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        silent.append(connection)
    begin = time.monotonic()
    _, last = streamed(server, model, prompt="a dog", gen_args=GEN_ARGS)
    assert parameter(last, "seed") == 3
    assert time.monotonic() - begin < 30
    wait_for(lambda: client.counter("diffusion_images_total", model) >= 5, 30, "all requests are computed")
    for connection in silent:
        connection.close()


def test_model_that_is_not_decoupled_says_what_to_set(client, model):
    message = client.refused("plain", prompt="a cat", gen_args=GEN_ARGS)
    assert "`progress_every` needs `model_transaction_policy { decoupled: true }`" in message

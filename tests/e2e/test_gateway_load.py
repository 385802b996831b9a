"""200 clients at once, of which a third disconnect, with hostile ones among them: every other one gets its image."""

import base64
import concurrent.futures
import contextlib
import http.client
import json
import random
import socket
import threading
import time

import pytest

from gateway import DECOUPLED, Gateway, read_events, running
from support import TIMEOUT, config, pixels, wait_for

CLIENTS = 200
HOSTILE = 30
ROUNDS = 3
SEEDS = range(4)
STEPS = 3
# Within this time, a client that disconnects does.
SOON = 2.0
# How much the memory of the gateway may grow from the second round to the last.
GROWTH = 16 << 20
GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def gateway(server, repository, client):
    repository.add("plain", config())
    repository.add("told", config() + DECOUPLED)
    client.load("plain", "told")
    with Gateway(server.grpc_address) as started:
        yield started


@pytest.fixture(scope="module")
def expected(client, gateway):
    """The image of each seed, by whether the request is that of stable-diffusion-webui, with weights in the prompt."""
    images = {}
    for seed in SEEDS:
        args = {"num_inference_steps": STEPS, "seed": seed}
        images[seed, False] = pixels(client.infer("plain", prompt="a cat", gen_args=args).image)
        args["prompt_syntax"] = "weighted"
        images[seed, True] = pixels(client.infer("plain", prompt="a cat", gen_args=args).image)
    return images


def body(kind, seed):
    """Returns the path and the body of a request."""
    if kind.startswith("webui"):
        common = {"prompt": "a cat", "steps": STEPS, "seed": seed, "width": 64, "height": 64}
        return "/sdapi/v1/txt2img", {**common, "override_settings": {"sd_model_checkpoint": kind.split()[1]}}
    common = {"model": kind.split()[1], "prompt": "a cat", "num_inference_steps": STEPS, "seed": seed}
    stream = {"stream": True, "partial_images": 2, "progress": True} if kind.startswith("stream") else {}
    return GENERATIONS, {**common, **stream}


KINDS = ["whole plain", "whole told", "stream plain", "stream told", "webui plain", "webui told"]


def image_of(kind, response):
    """Reads the image of a response."""
    if kind.startswith("stream"):
        [data] = [data for kind, data in read_events(response) if kind == "image_generation.completed"]
        return data["b64_json"]
    reply = json.loads(response.read())
    return reply["images"][0] if kind.startswith("webui") else reply["data"][0]["b64_json"]


def good(gateway, kind, seed):
    """Sends a request; returns its image."""
    path, fields = body(kind, seed)
    with gateway.connection() as connection:
        connection.request("POST", path, json.dumps(fields))
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return pixels(base64.b64decode(image_of(kind, response)))


def disconnecting(gateway, kind, seed, seconds):
    """Sends a request, and closes the connection after `seconds`."""
    path, fields = body(kind, seed)
    fields |= {"steps": 500} if kind.startswith("webui") else {"num_inference_steps": 500}
    with gateway.connection() as connection:
        connection.request("POST", path, json.dumps(fields))
        time.sleep(seconds)


def hostile(gateway, index):
    """Sends what no client should. Returns the status, and what was expected."""
    begun = [
        (b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nzanzibar}", 400),
        (b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n--a\r", 400),
        (b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 3000), 404),
        (b"zanzibar\r\n\r\n", 400),
        # The end never comes.
        (b"POST /sdapi/v1/txt2img HTTP/1.1\r\nhost: x\r\ncontent-length: 60000000\r\n\r\n{", None),
        (b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\n", None),
    ]
    data, expected = begun[index % len(begun)]
    with contextlib.closing(socket.create_connection(("127.0.0.1", gateway.port), timeout=TIMEOUT)) as connection:
        connection.sendall(data)
        if expected is None:
            time.sleep(SOON)
            return None, None
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, expected


def play(gateway, expected, chance):
    """Runs one round: all clients at the same moment."""
    barrier = threading.Barrier(CLIENTS + HOSTILE)
    leave = {index: chance.uniform(0, SOON) for index in chance.sample(range(CLIENTS), CLIENTS // 3)}

    def run(index):
        kind, seed = KINDS[index % len(KINDS)], SEEDS[index % len(SEEDS)]
        barrier.wait(TIMEOUT)
        if index >= CLIENTS:
            status, wanted = hostile(gateway, index)
            assert status == wanted, (index, status)
        elif index in leave:
            disconnecting(gateway, kind, seed, leave[index])
        else:
            assert (good(gateway, kind, seed) == expected[seed, kind.startswith("webui")]).all(), kind
            return 1
        return 0

    with concurrent.futures.ThreadPoolExecutor(CLIENTS + HOSTILE) as threads:
        served = sum(threads.map(run, range(CLIENTS + HOSTILE)))
    assert served == CLIENTS - len(leave)


def test_every_client_that_stays_gets_its_image(server, gateway, expected):
    chance = random.Random(3)
    memory = []
    for _ in range(ROUNDS):
        play(gateway, expected, chance)
        for model in "plain", "told":
            wait_for(lambda model=model: running(server, model) == 0, 20, "nothing runs")
        # With that of the metrics.
        wait_for(lambda: gateway.metric("diffusion_gateway_requests_in_flight") == 1, 20, "nothing is served")
        assert gateway.metric("diffusion_gateway_body_bytes") == 0
        memory.append(gateway.memory())
    assert memory[-1] < memory[1] + GROWTH, memory
    assert gateway.process.poll() is None
    print([round(each / 2**20, 1) for each in memory])

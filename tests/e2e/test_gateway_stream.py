"""The gateway in front of a decoupled model: events of a stream, and requests with one response."""

import base64
import json
import socket
import time

import openai
import pytest

from client import to_base64
from gateway import DECOUPLED, Gateway, cancelled, file, read_events, running, transparent_spot
from support import CHECKPOINTS, SECRET, check_harmless, config, open_image, pixels, spot, wait_for, waves

GENERATIONS = "/v1/images/generations"
STEPS = 40
ARGS = {"num_inference_steps": STEPS, "seed": 7, "scheduler": "DDIMScheduler"}
LONG = {"num_inference_steps": 900, "seed": 5, "scheduler": "DDIMScheduler"}
# OpenAI's fields of an event: openai.types.ImageGenCompletedEvent and others.
FIELDS = {"type", "b64_json", "background", "created_at", "output_format", "quality", "size"}


@pytest.fixture(scope="module")
def gateway(server, repository, client):
    repository.add("told", config() + DECOUPLED)
    repository.add("plain", config())
    client.load("told", "plain")
    with Gateway(server.grpc_address) as started:
        yield started


@pytest.fixture
def api(gateway):
    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as connected:
        yield connected


def image_of(event):
    return base64.b64decode(event.b64_json)


def test_generation_streams_partial_images_and_the_image(api, client):
    events = list(
        api.images.generate(
            model="told",
            prompt="a cat",
            size="128x64",
            stream=True,
            partial_images=2,
            quality="high",
            output_format="webp",
            extra_body=ARGS,
        )
    )
    *partial, completed = events
    assert {event.type for event in partial} == {"image_generation.partial_image"}
    assert [event.partial_image_index for event in partial] == list(range(len(partial))) and 1 <= len(partial) <= 2
    # One pixel for each latent pixel.
    assert [open_image(image_of(event)).size for event in partial] == [(16, 8)] * len(partial)
    assert completed.type == "image_generation.completed"
    for event in events:
        assert event.model_fields_set >= FIELDS
        assert (event.output_format, event.quality, event.size) == ("webp", "high", "128x64")
        assert (event.background, event.image_index) == ("opaque", 0)
        assert abs(event.created_at - time.time()) < 100
    assert completed.usage.total_tokens == 0
    assert (completed.seed, completed.parameters["steps_run"]) == (7, STEPS)
    assert "triton_final_response" not in completed.parameters
    args = {**ARGS, "width": 128, "height": 64, "output_format": "webp"}
    expected = client.infer("plain", prompt="a cat", gen_args=args)
    assert (pixels(image_of(completed)) == pixels(expected.image)).all()


def test_edit_streams_partial_images_and_the_image(api, client):
    image, mask = waves(64, 64), transparent_spot(64, 64)
    *partial, completed = api.images.edit(
        model="told",
        image=file(image),
        mask=file(mask),
        prompt="a cat",
        stream=True,
        partial_images=2,
        extra_body=ARGS,
    )
    assert partial and {event.type for event in partial} == {"image_edit.partial_image"}
    assert completed.type == "image_edit.completed" and completed.size == "64x64"
    expected = client.infer(
        "plain",
        prompt="a cat",
        image=to_base64(image),
        mask_image=to_base64(spot(64, 64)),
        gen_args={**ARGS, "width": 64, "height": 64},
    )
    assert (pixels(image_of(completed)) == pixels(expected.image)).all()


def test_each_image_has_its_events(gateway):
    body = {"model": "told", "prompt": "a cat", "n": 2, "stream": True, "partial_images": 1, **ARGS}
    with gateway.stream(GENERATIONS, body) as events:
        events = list(events)
    kinds = [(kind.rpartition(".")[2], data["image_index"]) for kind, data in events]
    assert kinds == [("partial_image", 0), ("partial_image", 1), ("completed", 0), ("completed", 1)]
    assert all(kind == data["type"] for kind, data in events)
    assert len({data["b64_json"] for _, data in events}) == 4


def test_progress_is_sent_if_it_is_asked_for(gateway):
    body = {"model": "told", "prompt": "a cat", "stream": True, "progress": True, **ARGS}
    with gateway.stream(GENERATIONS, body) as events:
        *progress, (last, _) = list(events)
    assert last == "image_generation.completed"
    assert progress and {kind for kind, _ in progress} == {"image_generation.progress"}
    steps = [data["step"] for _, data in progress]
    assert steps == sorted(steps) and {data["steps"] for _, data in progress} == {STEPS}
    assert all(data["eta_ms"] >= 0 for _, data in progress if data["step"])
    with gateway.stream(GENERATIONS, {**body, "progress": False}) as events:
        assert [kind for kind, _ in events] == ["image_generation.completed"]


def test_previews_of_full_size(gateway):
    body = {"model": "told", "prompt": "a cat", "stream": True, "partial_images": 3, "preview": "vae", **ARGS}
    with gateway.stream(GENERATIONS, body) as events:
        *partial, (_, completed) = list(events)
    sizes = {open_image(base64.b64decode(data["b64_json"])).size for _, data in partial}
    assert 1 <= len(partial) <= 3 and sizes == {(64, 64)}
    assert completed["size"] == "64x64"


def test_model_that_is_not_decoupled_streams_the_image(gateway):
    body = {"model": "plain", "prompt": "a cat", "stream": True, "partial_images": 3, "progress": True, **ARGS}
    with gateway.stream(GENERATIONS, body) as events:
        assert [kind for kind, _ in events] == ["image_generation.completed"]


def test_model_with_a_safety_checker_has_no_partial_images(gateway, repository, client):
    repository.add("checked", config() + DECOUPLED, checkpoint=CHECKPOINTS / "sd1_safety")
    client.load("checked")
    body = {"model": "checked", "prompt": "a cat", "stream": True, "partial_images": 3, **ARGS}
    with gateway.stream(GENERATIONS, body) as events:
        assert [kind for kind, _ in events] == ["image_generation.completed"]
    message = gateway.error(GENERATIONS, {**body, "preview": "linear"}, 400)["message"]
    assert "safety checker" in message


def test_decoupled_model_answers_requests_with_one_response(api, gateway, client):
    response = api.images.generate(model="told", prompt="a cat", extra_body=ARGS)
    expected = client.infer("plain", prompt="a cat", gen_args=ARGS)
    assert (pixels(base64.b64decode(response.data[0].b64_json)) == pixels(expected.image)).all()
    assert response.seed == 7 and "triton_final_response" not in response.parameters
    error = gateway.error(GENERATIONS, {"model": "told", "prompt": "a cat", "num_inference_steps": 0})
    assert "num_inference_steps" in error["message"]


def test_error_before_the_stream_has_a_status(api):
    with pytest.raises(openai.BadRequestError, match="num_inference_steps") as error:
        api.images.generate(
            model="told", prompt=SECRET, stream=True, partial_images=2, extra_body={"num_inference_steps": 0}
        )
    check_harmless(str(error.value))
    with pytest.raises(openai.NotFoundError):
        api.images.generate(model=SECRET, prompt="a cat", stream=True)


def test_error_in_the_stream_is_an_event(server, gateway):
    with Gateway(server.grpc_address, arguments=["--timeout-seconds", "1"]) as impatient:
        body = {"model": "told", "prompt": "a long way", "size": "128x128", "stream": True, "progress": True, **LONG}
        with impatient.stream(GENERATIONS, body) as events:
            *progress, (kind, data) = list(events)
        assert progress and kind == "error"
        assert set(data["error"]) == {"message", "type", "param", "code"} and "time limit" in data["error"]["message"]
        wait_for(
            lambda: impatient.metric("diffusion_gateway_requests_total", route=GENERATIONS, status="504") == 1,
            10,
            "the failure is counted",
        )
        with openai.OpenAI(base_url=impatient.url, api_key="none", max_retries=0) as api:
            stream = api.images.generate(
                model="told",
                prompt="a long way",
                size="128x128",
                stream=True,
                partial_images=3,
                extra_body={**LONG, "progress": True},
            )
            with pytest.raises(openai.APIError, match="time limit"):
                list(stream)


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_disconnects_cancels_its_job(server, gateway, stream):
    before, ended = cancelled(server, "told"), gateway.metric("diffusion_gateway_requests_total", status="499")
    body = {"model": "told", "prompt": "a long way", "size": "128x128", **LONG}
    if stream:
        with gateway.stream(GENERATIONS, {**body, "stream": True, "partial_images": 50, "progress": True}) as events:
            next(events)
            assert running(server, "told") == 1
            assert gateway.metric("diffusion_gateway_requests_in_flight") == 2  # with that of the metrics
    else:
        with gateway.connection() as connection:
            connection.request("POST", GENERATIONS, json.dumps(body))
            wait_for(lambda: running(server, "told") == 1, 30, "the request runs")
    wait_for(lambda: cancelled(server, "told") == before + 1, 10, "the job is cancelled")
    assert running(server, "told") == 0
    wait_for(lambda: gateway.metric("diffusion_gateway_requests_total", status="499") == ended + 1, 10, "it is counted")
    assert gateway.metric("diffusion_gateway_requests_in_flight") == 1


def test_slow_reader_loses_partial_images_and_gets_the_image(gateway, client):
    """Previews of more bytes than the buffers of the sockets hold, for a client that does not read until the end."""
    args = {**ARGS, "num_inference_steps": 100, "width": 192, "height": 192}
    body = {"model": "told", "prompt": "a cat", "size": "192x192", "stream": True, "partial_images": 100, **ARGS}
    body |= {"num_inference_steps": 100, "preview": "vae"}
    done, before = client.counter("diffusion_images_total", "told"), gateway.memory()
    with gateway.connection() as connection:
        connection.connect()
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.request("POST", GENERATIONS, json.dumps(body))
        wait_for(lambda: client.counter("diffusion_images_total", "told") == done + 1, 60, "the image is computed")
        grown = gateway.memory() - before
        # Others are served meanwhile.
        gateway.json("POST", GENERATIONS, {"model": "told", "prompt": "a cat", **ARGS})
        *partial, (kind, completed) = list(read_events(connection.getresponse()))
    assert kind == "image_generation.completed"
    size = len(completed["b64_json"])
    assert [data["partial_image_index"] for _, data in partial] == list(range(len(partial)))
    assert 1 <= len(partial) < 60 and grown < 40 * size, (len(partial), grown, size)
    expected = client.infer("plain", prompt="a cat", gen_args=args)
    assert (pixels(base64.b64decode(completed["b64_json"])) == pixels(expected.image)).all()


def test_models_describe_themselves(gateway):
    for name, decoupled in ("told", True), ("plain", False):
        model = gateway.json("GET", f"/v1/models/{name}")
        assert (model["id"], model["diffusion"]["decoupled"]) == (name, decoupled)
        arguments = model["diffusion"]["pipelines"]["StableDiffusionPipeline"]["arguments"]
        assert arguments["num_inference_steps"]["maximum"] == 1000
    assert "diffusion" not in gateway.json("GET", "/v1/models")["data"][0]

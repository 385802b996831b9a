"""The gateway in front of real servers: its images are the backend's, and every client gets its own error."""

import base64
import json
import socket
import threading

import numpy as np
import openai
import pytest
import yaml

import seeded_checkpoints
import server as triton
from client import to_base64
from gateway import Gateway, cancelled, file, running, transparent_spot
from support import CHECKPOINTS, ROOT, SECRET, at_most, check_harmless, open_image, pixels, spot, wait_for, waves

SHORT = {"num_inference_steps": 2, "seed": 7}
LONG = {"num_inference_steps": 900, "seed": 5, "scheduler": "DDIMScheduler"}
GENERATIONS = "/v1/images/generations"
# OpenAI's edits have a form.
BOUNDARY = "limit"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def gateway(server, repository, client):
    repository.add("sd_base")
    repository.add("sd_other")
    client.load("sd_base", "sd_other")
    with Gateway(server.grpc_address, arguments=["--max-body-mib", "2"]) as running:
        yield running


@pytest.fixture
def api(gateway):
    with openai.OpenAI(base_url=gateway.url, api_key="none", max_retries=0) as connected:
        yield connected


def images_of(response):
    return [base64.b64decode(image.b64_json) for image in response.data]


def test_generation_has_the_images_and_the_seed_of_the_backend(api, client):
    response = api.images.generate(
        model="sd_base",
        prompt="a cat",
        n=2,
        size="64x128",
        response_format="b64_json",
        extra_body={**SHORT, "negative_prompt": "a dog", "guidance_scale": 3.5, "scheduler": "Euler a"},
    )
    expected = client.infer(
        "sd_base",
        prompt="a cat",
        negative_prompt="a dog",
        gen_args={
            **SHORT,
            "num_images_per_prompt": 2,
            "width": 64,
            "height": 128,
            "guidance_scale": 3.5,
            "scheduler": "EulerAncestralDiscreteScheduler",
        },
    )
    got = images_of(response)
    assert [open_image(image).size for image in got] == [(64, 128)] * 2
    assert (pixels(got[0]) != pixels(got[1])).any()
    for image, other in zip(got, expected.images[0], strict=True):
        assert (pixels(image) == pixels(other)).all()
    assert response.seed == 7
    assert response.parameters["steps_run"] == 2
    assert response.created > 1_000_000_000


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_output_format(api, name, kind):
    quality = {} if name == "png" else {"output_compression": 60}
    response = api.images.generate(model="sd_base", prompt="a cat", output_format=name, extra_body=SHORT, **quality)
    assert open_image(images_of(response)[0]).format == kind
    assert response.output_format == name


def test_edit_with_a_mask_repaints_what_is_transparent(api, client):
    image = waves(64, 64)
    response = api.images.edit(
        model="sd_base", image=file(image), mask=file(transparent_spot(64, 64)), prompt="a cat", extra_body=SHORT
    )
    [got] = images_of(response)
    expected = client.infer(
        "sd_base",
        prompt="a cat",
        image=to_base64(image),
        mask_image=to_base64(spot(64, 64)),
        gen_args={**SHORT, "width": 64, "height": 64},
    )
    assert (pixels(got) == pixels(expected.image)).all()
    kept = np.asarray(spot(64, 64)) == 0
    assert (pixels(got)[kept] == np.asarray(image)[kept]).all()
    assert (pixels(got)[~kept] != np.asarray(image)[~kept]).any()


def test_edit_without_a_mask_is_image_to_image(api, client):
    image = waves(64, 64)
    response = api.images.edit(
        model="sd_base", image=file(image), prompt="a cat", extra_body={**SHORT, "strength": 0.5}
    )
    expected = client.infer("sd_base", prompt="a cat", image=to_base64(image), gen_args={**SHORT, "strength": 0.5})
    assert (pixels(images_of(response)[0]) == pixels(expected.image)).all()


def test_edit_has_the_size_of_the_request(api):
    for mask in {}, {"mask": file(transparent_spot(64, 64))}:
        response = api.images.edit(
            model="sd_base", image=file(waves(64, 64)), prompt="a cat", size="128x64", extra_body=SHORT, **mask
        )
        assert open_image(images_of(response)[0]).size == (128, 64)


def test_models(api):
    assert {"sd_base", "sd_other"} <= {model.id for model in api.models.list()}
    assert api.models.retrieve("sd_base").id == "sd_base"
    with pytest.raises(openai.NotFoundError) as error:
        api.models.retrieve(SECRET)
    check_harmless(str(error.value))


def test_unknown_model_is_not_found(api):
    with pytest.raises(openai.NotFoundError) as error:
        api.images.generate(model=SECRET, prompt="a cat")
    assert error.value.code == "model_not_found"
    check_harmless(str(error.value))
    # There are several, so one must be named.
    with pytest.raises(openai.BadRequestError) as error:
        api.images.generate(prompt="a cat")
    assert error.value.param == "model"


def test_lora_is_named_after_its_model(gateway, api, repository, client):
    manifest = json.loads((ROOT / "tests" / "data" / "goldens" / "adapters.json").read_text())
    [content] = [file["content"] for file in manifest["files"] if file["path"] == "sd1-kohya.safetensors"]
    for name in "sd_styled", "sd:styled":
        loras = repository.add(name, checkpoint=CHECKPOINTS / "sd1") / "1" / "loras"
        loras.mkdir()
        (loras / "watercolor.safetensors").write_bytes(seeded_checkpoints.weights(content))
    client.load("sd_styled")
    # The HTTP client encodes the colon.
    client.grpc.load_model("sd:styled")
    assert gateway.json("GET", "/sdapi/v1/loras") == [
        {"name": "watercolor", "alias": "watercolor", "path": "watercolor", "metadata": {}}
    ]
    assert gateway.json("GET", "/v1/models/sd:styled")["diffusion"]["loras"] == ["watercolor"]

    def image(model, **arguments):
        return images_of(api.images.generate(model=model, prompt="a cat", extra_body={**SHORT, **arguments}))[0]

    expected = client.infer("sd_styled", prompt="a cat", gen_args={**SHORT, "loras": [{"name": "watercolor"}]}).image
    assert (pixels(image("sd_styled:watercolor")) == pixels(expected)).all()
    assert (pixels(image("sd:styled:watercolor")) == pixels(expected)).all()
    assert (pixels(image("sd:styled")) == pixels(image("sd_styled"))).all()
    assert (pixels(image("sd_styled")) != pixels(expected)).any()
    assert (pixels(image("sd_styled", loras=[{"name": "watercolor"}])) == pixels(expected)).all()
    assert (pixels(image("sd_styled", loras=[{"name": "watercolor", "scale": 0.5}])) != pixels(expected)).any()
    with pytest.raises(openai.BadRequestError, match="loras: expected none with a LoRA in `model`"):
        image("sd_styled:watercolor", loras=[{"name": "watercolor"}])
    with pytest.raises(openai.BadRequestError, match="lora"):
        image("sd_base:watercolor")
    with pytest.raises(openai.NotFoundError):
        image("sd:watercolor")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"response_format": "url"}, "response_format"),
        ({"size": SECRET}, "size"),
        ({"size": "100000x100000"}, "size"),
        ({"size": "8192x8192"}, "size"),
        ({"size": "60x60"}, "multiple of 8"),
        ({"n": 10_000}, "num_images_per_prompt"),
        ({"n": "two"}, "n: expected a number"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"scheduler": SECRET}, "scheduler"),
        ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"num_inference_step": 2}, "num_inference_step"),
        ({SECRET: 1}, "unknown field"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "zanzibar " * 10_000}, "prompt"),
        ({"stream": 1}, "stream"),
        ({"partial_images": 2}, "partial_images"),
        ({"stream": True, "partial_images": 101}, "partial_images"),
        ({"stream": True, "preview": SECRET}, "preview"),
        ({"stream": True, "num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_bad_arguments(gateway, arguments, words):
    error = gateway.error(GENERATIONS, {"model": "sd_base", "prompt": "a cat", **SHORT, **arguments})
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"
    check_harmless(error["message"])


def form(*parts):
    """Makes a form of (name, bytes)."""
    body = b""
    for name, value in parts:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="x"\r\n\r\n'
        body += head.encode() + value + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(("prompt", b"a"), ("model", b"sd_base")), "image: expected a file"),
        (form(("prompt", b"a"), ("model", b"sd_base"), ("image", b"zanzibar")), "image"),
        (form(("prompt", b"a"), ("image", b"zanzibar"), ("mask", b"zanzibar")), "image"),
        (form(("prompt", b"\xff"), ("image", b"zanzibar")), "UTF-8"),
        (form(("prompt", b"a"), ("image", b"a"))[:-10], "multipart"),
        (b"zanzibar", "multipart"),
        (b"", "multipart"),
    ],
    ids=["no_image", "broken_image", "broken_files", "not_utf8", "cut", "text", "empty"],
)
def test_bad_forms(gateway, body, words):
    status, _, reply = gateway.send("POST", "/v1/images/edits", body, FORM)
    message = json.loads(reply)["error"]["message"]
    assert status == 400 and words in message, reply
    check_harmless(message)


def test_body_that_is_too_large(gateway):
    limit = 2 << 20
    # The gateway answers before the client has sent everything, so the client sends no more than is read.
    announced = ("content-length", str(limit + 1)), b""
    counted = ("transfer-encoding", "chunked"), b"%x\r\n" % (limit + 1) + b"a" * (limit + 1)
    for header, body in announced, counted:
        with gateway.connection() as connection:
            connection.putrequest("POST", GENERATIONS)
            connection.putheader(*header)
            connection.endheaders(body)
            response = connection.getresponse()
            assert response.status == 413
            assert str(limit) in json.loads(response.read())["error"]["message"]


def test_all_bodies_together_are_limited(server, gateway):
    body = {"model": "sd_base", "prompt": "a cat", **SHORT}
    with Gateway(server.grpc_address, arguments=["--max-body-mib", "1", "--max-bodies-mib", "1"]) as small:
        with socket.create_connection(("127.0.0.1", small.port)) as slow:
            slow.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (GENERATIONS.encode(), 1 << 20))
            wait_for(lambda: small.metric("diffusion_gateway_body_bytes") == 1 << 20, 10, "the body is announced")
            status, headers, reply = small.send("POST", GENERATIONS, body)
            assert (status, headers["retry-after"]) == (503, "1") and str(1 << 20) in reply.decode()
            # Without a body.
            small.json("GET", "/v1/models")
        wait_for(lambda: small.metric("diffusion_gateway_body_bytes") == 0, 10, "the client is gone")
        small.json("POST", GENERATIONS, body)
        assert small.metric("diffusion_gateway_body_bytes") == 0


def test_slow_clients_do_not_keep_others_waiting(gateway):
    slow = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(50)]
    for index, each in enumerate(slow):
        head = b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n"
        each.sendall(head if index % 2 else head + b"\r\n{")
    with at_most(30):
        assert len(gateway.json("POST", GENERATIONS, {"model": "sd_base", "prompt": "a cat", **SHORT})["data"]) == 1
    for each in slow:
        each.close()


def test_client_that_disconnects_cancels_its_job(server, gateway):
    before, ended = cancelled(server), gateway.metric("diffusion_gateway_requests_total", status="499")
    with gateway.connection() as connection:
        body = {"model": "sd_base", "prompt": "a long way", "size": "128x128", **LONG}
        connection.request("POST", GENERATIONS, json.dumps(body))
        wait_for(lambda: running(server) == 1, 30, "the request runs")
    wait_for(lambda: cancelled(server) == before + 1, 10, "the job is cancelled")
    assert running(server) == 0
    assert gateway.metric("diffusion_gateway_requests_total", status="499") == ended + 1
    assert gateway.metric("diffusion_gateway_requests_in_flight") == 1  # that of the metrics


def test_time_limit_of_the_gateway_ends_the_job(server, gateway, client):
    passed = server.metric("diffusion_deadlines_passed_total", model="sd_base") or 0
    with Gateway(server.grpc_address, arguments=["--timeout-seconds", "1"]) as impatient, at_most(20):
        body = {"model": "sd_base", "prompt": "a long way", "size": "128x128", **LONG}
        message = impatient.error(GENERATIONS, body, 504)["message"]
    assert "time limit" in message
    assert server.metric("diffusion_deadlines_passed_total", model="sd_base") == passed + 1


def test_request_ids(gateway):
    assert gateway.send("GET", "/healthz", headers={"x-request-id": "job-1"})[1]["x-request-id"] == "job-1"
    made = {gateway.send("GET", "/nothing")[1]["x-request-id"] for _ in range(3)}
    assert len(made) == 3


def test_metrics_count_by_route_and_status(gateway):
    def count(status):
        return gateway.metric("diffusion_gateway_requests_total", route=GENERATIONS, status=status)

    good, bad = count("200"), count("400")
    gateway.json("POST", GENERATIONS, {"model": "sd_base", "prompt": "a cat", **SHORT})
    gateway.error(GENERATIONS, {"model": "sd_base", "prompt": "a cat", "n": 0})
    assert (count("200"), count("400")) == (good + 1, bad + 1)
    assert gateway.metric("diffusion_gateway_request_seconds_count", route=GENERATIONS) >= good + bad + 2


def test_key(server, gateway):
    with Gateway(server.grpc_address, key="secret") as keyed:
        for key, works in ("secret", True), ("other", False):
            with openai.OpenAI(base_url=keyed.url, api_key=key, max_retries=0) as connected:
                if works:
                    assert connected.models.retrieve("sd_base").id == "sd_base"
                else:
                    with pytest.raises(openai.AuthenticationError):
                        connected.models.list()
        assert keyed.send("GET", "/healthz")[0] == 200


def test_sigterm_finishes_running_requests_and_refuses_new_ones(server, gateway):
    with Gateway(server.grpc_address) as ending:
        body = {"model": "sd_base", "prompt": "a way", "size": "128x128", **LONG, "num_inference_steps": 150}
        replies = []
        sender = threading.Thread(target=lambda: replies.append(ending.json("POST", GENERATIONS, body)))
        sender.start()
        wait_for(lambda: running(server) == 1, 30, "the request runs")
        ending.terminate()

        def refuses():
            try:
                socket.create_connection(("127.0.0.1", ending.port)).close()
                return False
            # A reset: the connection was in the queue of the address.
            except (ConnectionRefusedError, ConnectionResetError):
                return True

        wait_for(refuses, 10, "new connections are refused")
        sender.join(60)
        assert len(replies) == 1 and len(replies[0]["data"]) == 1
        assert ending.process.wait(10) == 0


def test_a_server_that_is_down_is_passed_over(server, gateway, tmp_path):
    """Checks a gateway with one server that never was, one that ends, and `server`."""
    [nobody] = triton.free_ports(1)
    body = {"model": "sd_other", "prompt": "a cat", **SHORT}
    second = triton.TritonServer(
        server.model_repository, tmp_path / "log", models=["sd_other"], environment={"CUDA_VISIBLE_DEVICES": ""}
    )
    with second:
        addresses = f"127.0.0.1:{nobody}", second.grpc_address, server.grpc_address
        with Gateway(*addresses) as several:

            def served():
                return [each.metric("nv_inference_request_success", model="sd_other") or 0 for each in (second, server)]

            before = served()
            first = {several.json("POST", GENERATIONS, body)["data"][0]["b64_json"] for _ in range(6)}
            assert len(first) == 1
            wait_for(lambda: sum(served()) == sum(before) + 6, 10, "the counters count")
            assert all(now > then for now, then in zip(served(), before, strict=True))
            second.stop()
            again = {several.json("POST", GENERATIONS, body)["data"][0]["b64_json"] for _ in range(6)}
            assert again == first
            assert several.send("GET", "/healthz")[0] == 200
    with Gateway(f"127.0.0.1:{nobody}") as alone:
        assert alone.send("GET", "/healthz")[0] == 503
        status, headers, _ = alone.send("POST", GENERATIONS, body)
        assert status == 503 and headers["retry-after"] == "1"


def test_models_that_are_ready_are_listed(gateway, repository, client):
    assert "depth" not in {model["id"] for model in gateway.json("GET", "/v1/models")["data"]}
    repository.add("depth", checkpoint=CHECKPOINTS / "sd2_depth")
    client.load("depth")
    assert "depth" in {model["id"] for model in gateway.json("GET", "/v1/models")["data"]}
    client.http.unload_model("depth")
    wait_for(
        lambda: "depth" not in {model["id"] for model in gateway.json("GET", "/v1/models")["data"]},
        10,
        "an unloaded model is not listed",
    )


def test_gateway_takes_the_arguments_of_the_manifest(server):
    manifests = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "triton.yaml").read_text())
    [deployment] = [each for each in manifests if each["kind"] == "Deployment"]
    [container] = [each for each in deployment["spec"]["template"]["spec"]["containers"] if each["name"] == "gateway"]
    command, *arguments = container["args"]
    places = [each for each in arguments if each.startswith(("--triton=", "--listen="))]
    assert command == "gateway" and len(places) == 2
    with Gateway(server.grpc_address, arguments=[each for each in arguments if each not in places]) as deployed:
        for probe in "readinessProbe", "livenessProbe":
            assert deployed.send("GET", container[probe]["httpGet"]["path"])[0] == 200

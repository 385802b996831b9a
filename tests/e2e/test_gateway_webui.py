"""The gateway's part of the API of stable-diffusion-webui: its images are the backend's."""

import base64
import concurrent.futures
import json

import numpy as np
import pytest
from PIL import Image

from client import to_base64
from gateway import DECOUPLED, Gateway, cancelled, running
from support import CHECKPOINTS, config, open_image, pixels, spot, text_chunk, wait_for, waves

SHORT = {"num_inference_steps": 2, "seed": 7}
# The names of stable-diffusion-webui and the classes of diffusers, without `Scheduler`.
SAMPLERS = {
    "DPM++ 2M": "DPMSolverMultistep",
    "DPM++ 2S": "DPMSolverSinglestep",
    "Euler a": "EulerAncestralDiscrete",
    "Euler": "EulerDiscrete",
    "LMS": "LMSDiscrete",
    "Heun": "HeunDiscrete",
    "DPM2": "KDPM2Discrete",
    "DPM2 a": "KDPM2AncestralDiscrete",
    "DDIM": "DDIM",
    "DDPM": "DDPM",
    "DEIS": "DEISMultistep",
    "PLMS": "PNDM",
    "UniPC": "UniPCMultistep",
    "LCM": "LCM",
    "TCD": "TCD",
}


@pytest.fixture(scope="module")
def gateway(server, repository, client):
    repository.add("sd_base")
    repository.add("sd_other")
    repository.add("sd_told", config() + DECOUPLED)
    repository.add("xl", checkpoint=CHECKPOINTS / "sdxl_base")
    client.load("sd_base", "sd_other", "sd_told", "xl")
    with Gateway(server.grpc_address) as running:
        yield running


def test_webui_prompts_are_plain_for_a_model_without_weights(gateway, client):
    body = {"prompt": "a (red:1.3) cat", "steps": 2, "seed": 7, "width": 64, "height": 64}
    reply = gateway.json("POST", "/sdapi/v1/txt2img", {**body, "override_settings": {"sd_model_checkpoint": "xl"}})
    expected = client.infer("xl", prompt="a (red:1.3) cat", gen_args={**SHORT, "width": 64, "height": 64})
    assert (pixels(base64.b64decode(reply["images"][0])) == pixels(expected.image)).all()


def test_webui_txt2img_and_img2img(gateway, client):
    common = {"steps": 2, "seed": 7, "width": 64, "height": 64, "override_settings": {"sd_model_checkpoint": "sd_base"}}
    reply = gateway.json("POST", "/sdapi/v1/txt2img", {**common, "prompt": "a (red:1.3) cat", "sampler_name": "Euler"})
    [got] = [base64.b64decode(image) for image in reply["images"]]
    args = {**SHORT, "width": 64, "height": 64, "prompt_syntax": "weighted", "scheduler": "EulerDiscreteScheduler"}
    expected = client.infer("sd_base", prompt="a (red:1.3) cat", gen_args=args)
    assert (pixels(got) == pixels(expected.image)).all()
    assert json.loads(reply["info"])["seed"] == 7

    image = to_base64(waves(64, 64))
    edit = {**common, "prompt": "a cat", "init_images": [image], "denoising_strength": 0.5}
    reply = gateway.json("POST", "/sdapi/v1/img2img", edit)
    args = {**SHORT, "strength": 0.5, "prompt_syntax": "weighted"}
    expected = client.infer("sd_base", prompt="a cat", image=image, gen_args=args)
    assert (pixels(base64.b64decode(reply["images"][0])) == pixels(expected.image)).all()

    inverse = to_base64(Image.fromarray(255 - np.asarray(spot(64, 64))))
    reply = gateway.json("POST", "/sdapi/v1/img2img", {**edit, "mask": inverse, "inpainting_mask_invert": 1})
    args = {**args, "width": 64, "height": 64}
    expected = client.infer("sd_base", prompt="a cat", image=image, mask_image=to_base64(spot(64, 64)), gen_args=args)
    assert (pixels(base64.b64decode(reply["images"][0])) == pixels(expected.image)).all()


def test_webui_samplers_are_schedulers_of_the_backend(gateway):
    samplers = gateway.json("GET", "/sdapi/v1/samplers")
    assert {sampler["name"]: f"{SAMPLERS[sampler['name']]}Scheduler" for sampler in samplers} == {
        sampler["name"]: sampler["aliases"][0] for sampler in samplers
    }
    assert len(samplers) == len(SAMPLERS)
    for sampler in samplers:
        body = {
            "prompt": "a cat",
            "steps": 2,
            "seed": 7,
            "width": 64,
            "height": 64,
            "sampler_name": sampler["name"],
            "override_settings": {"sd_model_checkpoint": "sd_base"},
        }
        reply = gateway.json("POST", "/sdapi/v1/txt2img", body)
        used = text_chunk(base64.b64decode(reply["images"][0]))["gen_args"]["scheduler"]
        assert [used] == sampler["aliases"]


def test_webui_lists_and_options(gateway, server):
    assert {"sd_base", "sd_other"} <= {model["title"] for model in gateway.json("GET", "/sdapi/v1/sd-models")}
    assert [each["name"] for each in gateway.json("GET", "/sdapi/v1/schedulers")] == ["automatic"]
    assert gateway.json("GET", "/sdapi/v1/loras") == []
    assert gateway.json("GET", "/sdapi/v1/progress")["progress"] == 0
    assert gateway.json("GET", "/sdapi/v1/options")["sd_model_checkpoint"] is None
    assert "--model" in gateway.error("/sdapi/v1/options", {"sd_model_checkpoint": "sd_base"})["message"]
    with Gateway(server.grpc_address, arguments=["--model", "sd_base"]) as with_default:
        assert with_default.json("GET", "/sdapi/v1/options")["sd_model_checkpoint"] == "sd_base"
        assert with_default.json("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "sd_base"}) is None
        with_default.json("POST", "/v1/images/generations", {"prompt": "a cat", **SHORT})


@pytest.mark.parametrize("model", ["sd_base", "sd_told"])
def test_webui_interrupt_ends_the_clients_requests(server, gateway, model):
    before = cancelled(server, model)
    body = {
        "prompt": "a long way",
        "steps": 900,
        "width": 128,
        "height": 128,
        "sampler_name": "DDIM",
        "override_settings": {"sd_model_checkpoint": model},
    }
    with concurrent.futures.ThreadPoolExecutor() as threads:
        reply = threads.submit(gateway.send, "POST", "/sdapi/v1/txt2img", body)
        wait_for(lambda: running(server, model) == 1, 30, "the request runs")
        assert gateway.send("POST", "/sdapi/v1/interrupt", headers={"x-forwarded-for": "10.0.0.1"})[0] == 501
        assert running(server, model) == 1
        assert gateway.json("POST", "/sdapi/v1/interrupt", {}) == {}
        status, _, error = reply.result(10)
    assert status == 499 and json.loads(error)["error"]["code"] == "interrupted"
    wait_for(lambda: cancelled(server, model) == before + 1, 10, "the job is cancelled")
    assert running(server, model) == 0
    # The next request is not interrupted.
    gateway.json("POST", "/sdapi/v1/txt2img", {**body, "steps": 2})


def test_webui_progress(server, gateway):
    idle = gateway.json("GET", "/sdapi/v1/progress")
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    body = {
        "prompt": "a long way",
        "steps": 400,
        "width": 128,
        "height": 64,
        "sampler_name": "DDIM",
        "override_settings": {"sd_model_checkpoint": "sd_told"},
    }
    seen = []
    with concurrent.futures.ThreadPoolExecutor() as threads:
        reply = threads.submit(gateway.json, "POST", "/sdapi/v1/txt2img", body)
        while not reply.done():
            seen.append(gateway.json("GET", "/sdapi/v1/progress"))
    assert len(reply.result()["images"]) == 1
    seen = [each for each in seen if each["state"]["sampling_step"]]
    steps = [each["state"]["sampling_step"] for each in seen]
    assert steps == sorted(steps) and len(set(steps)) > 3
    for each in seen:
        state = each["state"]
        assert (state["sampling_steps"], state["job_count"], state["interrupted"]) == (400, 1, False)
        assert each["progress"] == pytest.approx(state["sampling_step"] / 400)
    assert max(each["eta_relative"] for each in seen) > 0
    assert open_image(base64.b64decode(seen[-1]["current_image"])).size == (16, 8)
    assert gateway.json("GET", "/sdapi/v1/progress") == idle

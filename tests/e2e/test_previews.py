"""Images before the final one, of the demo's model, whose VAE is trained; and the description of a model."""

import json

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from PIL import Image

from client import input_tensors, parameter, read_response, stream
from support import ROOT, config, pixels

DECOUPLED = "model_transaction_policy { decoupled: true }\n"
DEMO = ROOT / "demo" / "models" / "sd_base"
GEN_ARGS = {"num_inference_steps": 25, "seed": 3, "guidance_scale": 3.0, "progress_every": 1}
PROMPT = "a red star and a blue circle on a green background"


@pytest.fixture(scope="module")
def model(repository, client):
    repository.add("demo", config() + DECOUPLED, checkpoint=DEMO)
    client.load("demo")
    return "demo"


def streamed(server, model, **inputs):
    """Returns (step, image) of each preview, and the final image."""
    *before, last = stream(server.grpc_address, model, inputs)
    previews = [result for result in before if result.as_numpy("generated_image") is not None]
    return [(parameter(each, "step"), read_response(each).image) for each in previews], read_response(last).image


def decibels(one, other):
    """Returns the PSNR of two images of one size."""
    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return 10 * np.log10(255**2 / (difference**2).mean())


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_linear_previews_are_the_image_in_small(server, model, scheduler):
    args = {**GEN_ARGS, "scheduler": scheduler, "preview": "linear"}
    previews, image = streamed(server, model, prompt=PROMPT, gen_args=args)
    assert len(previews) > 5
    image = pixels(image)
    shown = {step: pixels(preview) for step, preview in previews}
    height, width, _ = next(iter(shown.values())).shape
    assert (height * 8, width * 8) == image.shape[:2]
    small = np.asarray(Image.fromarray(image.astype(np.uint8)).resize((width, height), Image.Resampling.BOX))
    # The demo's VAE is far from linear, so colors differ. What is where shows all the same.
    found = {step: np.corrcoef(preview.ravel(), small.ravel())[0, 1] for step, preview in shown.items()}
    print(scheduler, {step: round(value, 2) for step, value in found.items()})
    assert found[max(found)] > 0.7, found


def test_decoded_previews_become_the_image(server, model):
    previews, image = streamed(server, model, prompt=PROMPT, gen_args={**GEN_ARGS, "preview": "vae"})
    found = {step: decibels(pixels(preview), pixels(image)) for step, preview in previews}
    print({step: round(value, 1) for step, value in found.items()})
    first, last = min(found), max(found)
    assert last > 15 and found[last] > 25 and found[last] > found[first] + 6, found


def test_model_describes_itself(repository, client):
    repository.add("sd_plain", config())
    client.load("sd_plain")
    result = client.grpc.infer("sd_plain", input_tensors(grpcclient, {"prompt": "", "gen_args": {"describe": True}}))
    response = result.get_response()
    assert len(response.outputs) == 0
    description = json.loads(response.parameters["description"].string_param)
    assert description["decoupled"] is False
    assert set(description["pipelines"]) == {
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    }

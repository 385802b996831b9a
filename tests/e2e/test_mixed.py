"""Concurrent requests of every kind: each gets the same bytes as alone."""

import pytest

from client import to_base64
from support import CHECKPOINTS, config, slope, spot, waves

CALLS = "diffusion_unet_calls_total"
CHECKPOINT_OF = {
    "sd_base": "sd2_base",
    "sd_depth": "sd2_depth",
    "sd_inpaint": "sd2_inpaint",
    "sd_upscale": "x4_upscaler",
}
# Small enough for the upscaler to need several tiles for one of the images below.
PARAMETERS = {"sd_upscale": {"max_pixels": "4096"}}


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    for name, checkpoint in CHECKPOINT_OF.items():
        parameters = {"numerics": "exact", **PARAMETERS.get(name, {})}
        repository.add(name, config(parameters), checkpoint=CHECKPOINTS / checkpoint)
    client.load(*CHECKPOINT_OF)


def ask(prompt, image=None, mask_image=None, depth_map=None, negative_prompt=None, **gen_args):
    """Returns the inputs of a request, from PIL images."""
    images = {"image": image, "mask_image": mask_image, "depth_map": depth_map}
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "gen_args": gen_args,
        **{name: to_base64(each) for name, each in images.items() if each is not None},
    }


# For one StableDiffusionPipeline folder: text to image, image to image and inpainting with four channels. Requests of
# 64 by 64 pixels can share UNet calls, whatever their pipeline; the others have different sizes.
BASE = [
    ask("a cat on a mat", num_inference_steps=7, seed=1, scheduler="HeunDiscreteScheduler"),
    ask("a red house", num_inference_steps=11, seed=2, guidance_scale=1.0, scheduler="LCMScheduler"),
    ask("rain", negative_prompt="sun", num_inference_steps=14, seed=3, scheduler="EulerAncestralDiscreteScheduler"),
    ask("snow", image=waves(64, 64), num_inference_steps=15, strength=0.7, seed=4, scheduler="KDPM2DiscreteScheduler"),
    ask("fog", image=waves(66, 71), num_inference_steps=14, seed=5, eta=0.6, scheduler="DDIMScheduler"),
    ask("hail", image=waves(64, 64), mask_image=spot(64, 64), num_inference_steps=14, seed=6),
    ask(
        "dew",
        image=waves(100, 80),
        mask_image=spot(100, 80),
        num_inference_steps=14,
        strength=0.8,
        seed=7,
        padding_mask_crop=8,
        scheduler="UniPCMultistepScheduler",
    ),
    ask("ice", num_inference_steps=7, seed=8, height=96, width=72, scheduler="DPMSolverSinglestepScheduler"),
    ask("mud", image=waves(72, 96), num_inference_steps=7, seed=9, scheduler="KDPM2AncestralDiscreteScheduler"),
    ask(
        "sand",
        image=waves(72, 96),
        mask_image=spot(50, 50),
        height=96,
        width=72,
        num_inference_steps=7,
        seed=10,
        num_images_per_prompt=2,
        keep_unmasked=False,
        scheduler="DDPMScheduler",
    ),
]

OTHERS = [
    ("sd_depth", ask("a cat on a mat", image=waves(64, 64), num_inference_steps=11, seed=1)),
    (
        "sd_depth",
        ask(
            "a red house",
            image=waves(64, 66),
            depth_map=slope(30, 20),
            num_inference_steps=11,
            seed=2,
            scheduler="HeunDiscreteScheduler",
        ),
    ),
    ("sd_inpaint", ask("rain", image=waves(64, 64), mask_image=spot(64, 64), num_inference_steps=11, seed=3)),
    (
        "sd_inpaint",
        ask(
            "snow",
            image=waves(90, 70),
            mask_image=spot(90, 70),
            num_inference_steps=14,
            seed=4,
            strength=0.6,
            scheduler="EulerDiscreteScheduler",
        ),
    ),
    ("sd_upscale", ask("fog", image=waves(20, 24), num_inference_steps=7, seed=5, noise_level=50)),
    (
        "sd_upscale",
        ask("hail", image=waves(32, 40), num_inference_steps=3, seed=6, scheduler="EulerAncestralDiscreteScheduler"),
    ),
    ("sd_base", BASE[0]),
]


def alone_and_together(client, requests):
    """Checks that each response is the same alone and together with the others.

    Returns the responses, and the UNet calls that `sd_base` made alone and together.
    """
    start = client.counter(CALLS, "sd_base")
    alone = [client.infer(model, **inputs) for model, inputs in requests]
    between = client.counter(CALLS, "sd_base")
    together = client.all_at_once(requests)
    end = client.counter(CALLS, "sd_base")
    for (model, inputs), one, other in zip(requests, alone, together, strict=True):
        assert one.images == other.images, f"{model}, {inputs['prompt']}: the image differs together with others"
        assert one.parameters == other.parameters
    images = [image for response in alone for element in response.images for image in element]
    assert len(set(images)) == len(images)
    return alone, between - start, end - between


def test_pipelines_sizes_and_schedulers_of_one_checkpoint(client):
    _, alone, together = alone_and_together(client, [("sd_base", inputs) for inputs in BASE])
    assert together < alone, "no UNet call was shared"


def test_models_of_every_pipeline(client):
    responses, _, _ = alone_and_together(client, OTHERS)
    assert any(each.parameters.get("unet_tiles", 1) > 1 for each in responses), "no request used several tiles"


def test_equal_requests_get_equal_images(client):
    """Sends equal requests together with each other and with all the others."""
    requests = [("sd_base", inputs) for inputs in BASE[:4]] + OTHERS[:-1]
    together = client.all_at_once(requests * 2)
    for (model, inputs), one, other in zip(requests, together, together[len(requests) :], strict=False):
        assert one.images == other.images, f"{model}, {inputs['prompt']}"

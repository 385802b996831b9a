"""Compares images of the server with those that diffusers generated from the same checkpoints.

The committed images come from one processor, and kernels differ between processors: no byte may differ by more than 2,
and 99 % must be equal. `make parity` generates the images again on this machine and sets TRITON_DIFFUSION_PARITY to
their folder; then every byte must be equal.
"""

import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from client import to_base64
from support import CHECKPOINTS, ROOT, config, pixels

PARITY = os.environ.get("TRITON_DIFFUSION_PARITY")
GOLDENS = pathlib.Path(PARITY) if PARITY else ROOT / "tests" / "data" / "goldens"
# The group `images` is text to image; the others have input images.
GROUPS = ("images", "image_to_image", "depth_to_image", "inpaint", "upscale", "sdxl")
IMAGES = ("image", "mask_image", "depth_map")
# The Rust tests run the whole grid over schedulers, guidance, sizes and strengths; this test runs every fifth case. The
# periods of the grid are 2 and 3, so every value occurs.
STRIDE = 5


def cases_of(group):
    cases = json.loads((GOLDENS / f"{group}.json").read_text())["cases"]
    if PARITY or group == "images":
        return cases
    grid = [case for case in cases if "-guidance" in case["name"]]
    rest = [case for case in cases if "-guidance" not in case["name"]]
    assert grid and rest
    return grid[::STRIDE] + rest


CASES = [(group, case) for group in GROUPS for case in cases_of(group)]
MODELS = sorted({case["checkpoint"] for _, case in CASES})


@pytest.fixture(scope="module")
def goldens():
    return {group: load_file(GOLDENS / f"{group}.safetensors") for group in GROUPS}


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    for name in MODELS:
        repository.add(name, config({"numerics": "exact"}), checkpoint=CHECKPOINTS / name)
    client.load(*MODELS)


def batches(model, elements):
    """Groups batch elements into requests: one for all if they are alike, else one for each."""

    def form(element):
        # A negative prompt that is absent is another than an empty one for Stable Diffusion XL alone.
        negative = element["negative_prompt"] is None and model.startswith("sdxl")
        images = [element.get(name) is None for name in IMAGES]
        return element["gen_args"].get("num_images_per_prompt", 1), negative, images

    alike = all(form(element) == form(elements[0]) for element in elements)
    return [elements] if alike else [[element] for element in elements]


def ask(client, model, batch, recorded):
    """Sends a batch."""
    negative = [element["negative_prompt"] for element in batch]
    images = {
        name: [to_base64(Image.fromarray(recorded[f"inputs/{element[name]}"])) for element in batch]
        for name in IMAGES
        if batch[0].get(name) is not None
    }
    return client.infer(
        model,
        prompt=[element["prompt"] for element in batch],
        negative_prompt=None if negative == [None] * len(batch) else [text or "" for text in negative],
        gen_args=[element["gen_args"] for element in batch],
        **images,
    )


def check_flags(batch, parameters):
    """Compares the safety checker's flags, if the checkpoint has a safety checker."""
    flags = [flag for element in batch for flag in element.get("nsfw_content_detected") or []]
    returned = parameters.get("nsfw_content_detected")
    if len(flags) > 1:
        assert returned == ",".join(str(flag).lower() for flag in flags)
    else:
        assert returned == (flags[0] if flags else None)


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{group}-{case['name']}" for group, case in CASES])
def test_image_equals_golden(client, goldens, group, case):
    recorded, elements = goldens[group], case["elements"]
    images_of_elements = []
    for batch in batches(case["checkpoint"], elements):
        response = ask(client, case["checkpoint"], batch, recorded)
        check_flags(batch, response.parameters)
        images_of_elements.extend(response.images)
    assert len(images_of_elements) == len(elements)
    for number, images in enumerate(images_of_elements):
        expected = recorded[f"{case['name']}/{number}"].astype(np.int64)
        actual = np.stack([pixels(image) for image in images])
        assert actual.shape == expected.shape
        difference = np.abs(actual - expected)
        if PARITY:
            assert difference.max() == 0
        else:
            assert difference.max() <= 2
            assert (difference == 0).mean() >= 0.99


def test_flags_are_recorded():
    """Checks that `check_flags` compares both values."""
    flags = [
        flag for _, case in CASES for element in case["elements"] for flag in element.get("nsfw_content_detected") or []
    ]
    assert set(flags) == {False, True}

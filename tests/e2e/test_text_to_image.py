"""Text to image: inputs, gen_args, the output and the response parameters."""

import base64
import json
import urllib.request

import numpy as np
import pytest

from support import DEFAULT_SIZE, config, open_image, pixels, text_chunk

PROMPT = "a cat on a mat"
QUICK = {"num_inference_steps": 4, "seed": 11, "scheduler": "DDIMScheduler"}


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    repository.add("sd_base", config({"numerics": "exact"}))
    repository.add("any_dims", config({"numerics": "exact"}, dims="[ -1 ]"))
    client.load("sd_base", "any_dims")


def test_grpc_and_http_give_the_same_png(client):
    over_grpc = client.infer("sd_base", prompt=PROMPT, negative_prompt="a dog", gen_args=QUICK)
    over_http = client.infer_http("sd_base", prompt=PROMPT, negative_prompt="a dog", gen_args=QUICK)
    assert over_grpc.shape == over_http.shape == [1, 1]
    assert over_grpc.image == over_http.image
    assert over_grpc.parameters == over_http.parameters


def test_png_contains_the_image_and_its_parameters(client):
    response = client.infer("sd_base", prompt=PROMPT, gen_args={**QUICK, "guidance_scale": 6.5})
    image = open_image(response.image)
    assert (image.format, image.mode, image.size) == ("PNG", "RGB", (DEFAULT_SIZE, DEFAULT_SIZE))
    assert pixels(response.image).std() > 1, "one color all over"
    written = text_chunk(response.image)
    assert (written["prompt"], written["negative_prompt"], written["model"]) == (PROMPT, "", "sd_base")
    assert written["gen_args"].items() >= {**QUICK, "guidance_scale": 6.5}.items()


def test_parameters_of_a_png_reproduce_it(client):
    first = client.infer("sd_base", prompt=PROMPT, negative_prompt="a dog")
    written = text_chunk(first.image)
    assert written["gen_args"]["seed"] == first.parameters["seed"]
    again = client.infer(
        "sd_base",
        prompt=written["prompt"],
        negative_prompt=written["negative_prompt"],
        gen_args=written["gen_args"],
    )
    assert again.image == first.image


def test_height_and_width(client):
    response = client.infer("sd_base", prompt=PROMPT, gen_args={**QUICK, "height": 96, "width": 160})
    assert open_image(response.image).size == (160, 96)


def test_response_parameters(client):
    parameters = client.infer("sd_base", prompt=PROMPT, gen_args=QUICK).parameters
    assert parameters["seed"] == 11 and type(parameters["seed"]) is int
    assert parameters["steps_run"] == 4 and type(parameters["steps_run"]) is int
    assert parameters["cancelled"] is False
    assert parameters["prompt_truncated"] is False


def test_prompt_beyond_77_tokens_is_truncated_and_reported(client):
    long = "cat mat " * 60
    assert client.infer("sd_base", prompt=long, gen_args=QUICK).parameters["prompt_truncated"] is True
    assert client.infer_http("sd_base", prompt=long, gen_args=QUICK).parameters["prompt_truncated"] is True


def test_returned_seed_reproduces_the_image(client):
    unseeded = {"num_inference_steps": 4, "scheduler": "DDIMScheduler"}
    first = client.infer("sd_base", prompt=PROMPT, gen_args=unseeded)
    second = client.infer("sd_base", prompt=PROMPT, gen_args=unseeded)
    assert first.parameters["seed"] != second.parameters["seed"]
    assert first.image != second.image
    again = client.infer("sd_base", prompt=PROMPT, gen_args={**unseeded, "seed": first.parameters["seed"]})
    assert np.array_equal(pixels(first.image), pixels(again.image))


def test_each_input_changes_the_image(client):
    base = {**QUICK, "guidance_scale": 7.5}
    images = [
        client.infer("sd_base", prompt=PROMPT, gen_args=base),
        client.infer("sd_base", prompt="a red house", gen_args=base),
        client.infer("sd_base", prompt=PROMPT, negative_prompt="a dog", gen_args=base),
        client.infer("sd_base", prompt=PROMPT, gen_args={**base, "seed": 12}),
        client.infer("sd_base", prompt=PROMPT, gen_args={**base, "guidance_scale": 3}),
        client.infer("sd_base", prompt=PROMPT, gen_args={**base, "num_inference_steps": 5}),
        client.infer("sd_base", prompt=PROMPT, gen_args={**base, "scheduler": "DPMSolverMultistepScheduler"}),
        client.infer("sd_base", prompt=PROMPT, gen_args={**base, "scheduler": "PNDMScheduler"}),
    ]
    assert len({pixels(each.image).tobytes() for each in images}) == len(images)


def test_absent_negative_prompt_equals_empty_one(client):
    absent = client.infer("sd_base", prompt=PROMPT, gen_args=QUICK)
    empty = client.infer("sd_base", prompt=PROMPT, negative_prompt="", gen_args=QUICK)
    assert np.array_equal(pixels(absent.image), pixels(empty.image))


def test_defaults_are_the_defaults_of_diffusers(client):
    absent = client.infer("sd_base", prompt=PROMPT, gen_args={"seed": 3})
    written = {"num_inference_steps": 50, "guidance_scale": 7.5, "scheduler": "PNDMScheduler", "seed": 3}
    spelled = client.infer("sd_base", prompt=PROMPT, gen_args=written)
    assert np.array_equal(pixels(absent.image), pixels(spelled.image))
    assert text_chunk(absent.image)["gen_args"] == text_chunk(spelled.image)["gen_args"]


def test_gen_args_may_be_absent(client):
    response = client.infer("sd_base", prompt=PROMPT)
    assert open_image(response.image).size == (DEFAULT_SIZE, DEFAULT_SIZE)


def test_batch_element_equals_the_same_request_alone(client):
    prompts = [PROMPT, "a red house", "rain"]
    gen_args = [{**QUICK, "seed": seed} for seed in (1, 2, 3)]
    together = client.infer("sd_base", prompt=prompts, gen_args=gen_args)
    assert together.shape == [3, 1]
    for n in range(3):
        alone = client.infer("sd_base", prompt=prompts[n], gen_args=gen_args[n])
        assert together.images[n][0] == alone.image


def test_num_images_per_prompt(client):
    gen_args = [{**QUICK, "num_images_per_prompt": 2, "seed": seed} for seed in (1, 2, 3)]
    response = client.infer("sd_base", prompt=[PROMPT] * 3, gen_args=gen_args)
    assert response.shape == [3, 2]
    flat = [pixels(image).tobytes() for element in response.images for image in element]
    assert len(set(flat)) == 6, "two images are equal"
    over_http = client.infer_http("sd_base", prompt=[PROMPT] * 3, gen_args=gen_args)
    assert over_http.images == response.images


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_output_format(client, output_format):
    response = client.infer("sd_base", prompt=PROMPT, gen_args={**QUICK, "output_format": output_format})
    image = open_image(response.image)
    assert image.format == output_format.upper()
    assert image.size == (DEFAULT_SIZE, DEFAULT_SIZE)


def test_the_prompt_is_utf8(client):
    first = client.infer("sd_base", prompt="café naïve 東京", gen_args=QUICK)
    second = client.infer_http("sd_base", prompt="café naïve 東京", gen_args=QUICK)
    assert first.image == second.image


def test_json_body_without_outputs(server):
    """Sends a plain JSON body without an `outputs` section, and shape [1,1] to dims [-1], as old clients do."""
    body = {
        "inputs": [
            {"name": "prompt", "shape": [1, 1], "datatype": "BYTES", "data": [PROMPT]},
            {"name": "gen_args", "shape": [1, 1], "datatype": "BYTES", "data": [json.dumps(QUICK)]},
        ]
    }
    responses = []
    for model in ("sd_base", "any_dims"):
        request = urllib.request.Request(
            f"http://{server.http_address}/v2/models/{model}/infer", data=json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            responses.append(json.load(reply))
    for response in responses:
        (output,) = response["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("generated_image", "BYTES", [1, 1])
        assert response["parameters"]["seed"] == 11
    images = [base64.b64decode(response["outputs"][0]["data"][0]) for response in responses]
    assert np.array_equal(pixels(images[0]), pixels(images[1]))


def test_dims_minus_one(client):
    usual = client.infer("sd_base", prompt=PROMPT, gen_args=QUICK)
    any_dims = client.infer("any_dims", prompt=PROMPT, gen_args=QUICK)
    assert any_dims.shape == [1, 1]
    assert np.array_equal(pixels(any_dims.image), pixels(usual.image))

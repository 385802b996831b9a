"""Bad requests: each fails alone, with the right code; its message names the input but never the user's text."""

import numpy as np
import pytest

from support import SECRET, config

PROMPT = f"{SECRET} in the evening"


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    repository.add("sd_base")
    repository.add("any_dims", config(dims="[ -1 ]"))
    repository.add(
        "limited",
        config({"max_steps": "20", "max_pixels": str(64 * 64), "default_gen_args": '{"num_inference_steps": 10}'}),
    )
    client.load("sd_base", "any_dims", "limited")


@pytest.fixture(autouse=True)
def serves_on(client):
    """Checks after every bad request that a good one succeeds."""
    yield
    assert client.infer("sd_base", prompt=PROMPT, gen_args={"num_inference_steps": 1}).shape == [1, 1]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("num_inference_step", "num_inference_steps"),
        ("guidance_scal", "guidance_scale"),
        ("sede", "seed"),
        ("negative_guidance_scheduler", None),
    ],
)
def test_unknown_key(client, key, nearest):
    message = client.refused("sd_base", prompt=PROMPT, gen_args={key: SECRET})
    assert "gen_args" in message
    assert key in message
    if nearest:
        assert nearest in message.replace(f"`{key}`", "")


def test_unknown_key_that_is_not_an_identifier_is_not_quoted(client):
    for key in (SECRET, f"{SECRET} out of memory", "zanzibar" * 6, ""):
        assert "gen_args" in client.refused("sd_base", prompt=PROMPT, gen_args={key: 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_inference_steps", "five " + SECRET),
        ("num_inference_steps", 2.5),
        ("num_inference_steps", True),
        ("num_inference_steps", [SECRET]),
        ("guidance_scale", SECRET),
        ("height", "512"),
        ("seed", {"value": SECRET}),
        ("seed", 1.5),
        ("scheduler", 3),
        ("output_format", 7),
    ],
)
def test_wrong_type(client, key, value):
    assert key in client.refused("sd_base", prompt=PROMPT, gen_args={key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_inference_steps", 0),
        ("num_inference_steps", -1),
        ("num_inference_steps", 1001),
        ("num_inference_steps", 10**30),
        ("height", 100),
        ("height", -64),
        ("width", 2**40),
        ("num_images_per_prompt", 0),
        ("num_images_per_prompt", 10**9),
        ("seed", -1),
        ("seed", 2**70),
        ("scheduler", SECRET + "Scheduler"),
        ("output_format", SECRET),
        ("quality", 101),
    ],
)
def test_out_of_range(client, key, value):
    gen_args = {key: value}
    if key == "quality":
        gen_args["output_format"] = "jpeg"
    assert key in client.refused("sd_base", prompt=PROMPT, gen_args=gen_args)


def test_limits_of_the_model_are_named(client):
    message = client.refused("limited", prompt=PROMPT, gen_args={"num_inference_steps": 21})
    assert "num_inference_steps" in message and "20" in message
    message = client.refused("limited", prompt=PROMPT, gen_args={"height": 128, "width": 64})
    assert str(64 * 64) in message
    good = {"num_inference_steps": 20, "height": 64, "width": 64}
    assert client.infer("limited", prompt=PROMPT, gen_args=good).shape == [1, 1]


@pytest.mark.parametrize(
    "text",
    [
        f'{{"seed": 1 {SECRET}',
        f'["{SECRET}"]',
        f'"{SECRET}"',
        "17",
        '{"seed": NaN}',
        b'{"seed": "\xff\xfe"}',
        "[" * 10_000,
        "{" + " " * 100_000 + "}",
    ],
    ids=["unfinished", "array", "string", "number", "nan", "not_utf8", "nested", "long"],
)
def test_gen_args_that_is_not_a_json_object(client, text):
    assert "gen_args" in client.refused("sd_base", prompt=PROMPT, gen_args=text)


def test_prompt_that_is_not_utf8(client):
    assert "prompt" in client.refused("sd_base", prompt=b"\xff\xfe zanzibar")


@pytest.mark.parametrize("model", ["sd_base", "any_dims"])
def test_two_values_in_a_batch_element(client, model):
    two = np.array([[PROMPT.encode(), PROMPT.encode()]], dtype=np.object_)
    assert "prompt" in client.refused(model, prompt=two)


def test_no_value_in_a_batch_element(client):
    assert "prompt" in client.refused("any_dims", prompt=np.zeros((1, 0), dtype=np.object_))


def test_missing_prompt(client):
    client.refused("sd_base", gen_args={"seed": 1})


def test_batch_sizes_that_do_not_match(client):
    client.refused("sd_base", prompt=[PROMPT] * 3, gen_args=[{"seed": 1}] * 2)
    client.refused("sd_base", prompt=[PROMPT] * 2, negative_prompt=PROMPT)


def test_batch_elements_with_different_numbers_of_images(client):
    gen_args = [{"num_images_per_prompt": count, "num_inference_steps": 1} for count in (1, 2)]
    assert "num_images_per_prompt" in client.refused("sd_base", prompt=[PROMPT] * 2, gen_args=gen_args)


def test_batch_beyond_max_batch_size(client):
    client.refused("sd_base", prompt=[PROMPT] * 9)


def test_bad_batch_element_names_the_argument(client):
    gen_args = [{"num_inference_steps": 1}, {"num_inference_steps": 0}]
    assert "num_inference_steps" in client.refused("sd_base", prompt=[PROMPT] * 2, gen_args=gen_args)


def test_input_of_another_pipeline(client):
    client.refused("sd_base", prompt=PROMPT, depth_map=SECRET)

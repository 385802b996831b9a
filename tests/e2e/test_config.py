"""config.pbtxt: completion, parameters, and the configurations in model_repository/."""

import json
import shutil

import numpy as np
import pytest

from client import to_base64
from support import CHECKPOINT, CHECKPOINTS, ROOT, config, open_image, pixels, spot, text_chunk, waves

PROMPT = "a cat on a mat"
QUICK = {"num_inference_steps": 4, "seed": 11, "scheduler": "DDIMScheduler"}


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    repository.add("exact", config({"numerics": "exact"}))
    client.load("exact")


@pytest.fixture(scope="module")
def expected(client):
    """Returns the pixels of PROMPT with QUICK."""
    return pixels(client.infer("exact", prompt=PROMPT, gen_args=QUICK).image)


def test_config_with_only_a_backend_is_completed(repository, client):
    repository.add("bare", 'backend: "diffusion"\n')
    client.load("bare")
    completed = client.http.get_model_config("bare")
    inputs = {each["name"]: each for each in completed["input"]}
    assert {name: each.get("optional", False) for name, each in inputs.items()} == {
        "prompt": False,
        "negative_prompt": True,
        "image": True,
        "mask_image": True,
        "gen_args": True,
    }
    assert {each["data_type"] for each in inputs.values()} == {"TYPE_STRING"}
    (output,) = completed["output"]
    assert (output["name"], output["data_type"]) == ("generated_image", "TYPE_STRING")
    assert completed["max_batch_size"] >= 1
    response = client.infer("bare", prompt=[PROMPT], gen_args=[{**QUICK, "num_images_per_prompt": 2}])
    assert response.shape == [1, 2]


@pytest.mark.parametrize("dims", ["[ 1 ]", "[ -1 ]"])
def test_listed_inputs_are_accepted(repository, client, dims, expected):
    name = "written_" + ("one" if "-" not in dims else "any")
    repository.add(name, config({"numerics": "exact"}, dims=dims))
    client.load(name)
    response = client.infer(name, prompt=PROMPT, gen_args=QUICK)
    assert np.array_equal(pixels(response.image), expected)


@pytest.mark.parametrize(
    ("replace", "by", "named"),
    [
        ('name: "prompt" data_type: TYPE_STRING', 'name: "prompt" data_type: TYPE_INT32', "prompt"),
        ('name: "gen_args"', 'name: "generation_arguments"', "generation_arguments"),
        ('name: "generated_image"', 'name: "result"', "result"),
    ],
)
def test_unknown_input_or_output_fails_the_load(repository, client, replace, by, named):
    text = config(dims="[ 1 ]")
    assert replace in text
    repository.add(f"wrong_{named}", text.replace(replace, by))
    assert named in client.load_error(f"wrong_{named}")


def test_default_gen_args(repository, client):
    defaults = json.dumps({"num_inference_steps": 3, "seed": 5, "scheduler": "DDIMScheduler"})
    repository.add("defaults", config({"default_gen_args": defaults}))
    client.load("defaults")
    response = client.infer("defaults", prompt=PROMPT)
    assert (response.parameters["steps_run"], response.parameters["seed"]) == (3, 5)
    response = client.infer("defaults", prompt=PROMPT, gen_args={"num_inference_steps": 2})
    assert (response.parameters["steps_run"], response.parameters["seed"]) == (2, 5)


def test_scheduler(repository, client, expected):
    repository.add("ddim", config({"numerics": "exact", "scheduler": "DDIMScheduler"}))
    client.load("ddim")
    unnamed = {key: value for key, value in QUICK.items() if key != "scheduler"}
    response = client.infer("ddim", prompt=PROMPT, gen_args=unnamed)
    assert np.array_equal(pixels(response.image), expected)


def test_max_unet_batch_size_changes_no_image(repository, client):
    prompts, gen_args = [PROMPT, "rain", "snow"], [{**QUICK, "seed": seed} for seed in (1, 2, 3)]
    usual = client.infer("exact", prompt=prompts, gen_args=gen_args)
    repository.add("narrow", config({"numerics": "exact", "max_unet_batch_size": "4"}))
    client.load("narrow")
    narrow = client.infer("narrow", prompt=prompts, gen_args=gen_args)
    for n in range(3):
        assert np.array_equal(pixels(narrow.images[n][0]), pixels(usual.images[n][0]))
    calls = client.counter("diffusion_unet_calls_total", "narrow")
    entries = client.counter("diffusion_unet_batch_entries_total", "narrow")
    assert entries == 4 * 6
    assert entries / calls <= 4
    message = client.refused("narrow", prompt=PROMPT, gen_args={"num_images_per_prompt": 3})
    assert "num_images_per_prompt" in message and "max_unet_batch_size" in message


def test_fast_numerics_stay_close(repository, client, expected):
    repository.add("fast", config({"numerics": "fast"}))
    client.load("fast")
    fast = pixels(client.infer("fast", prompt=PROMPT, gen_args=QUICK).image)
    error = np.mean((fast - expected) ** 2)
    assert error == 0 or 10 * np.log10(255**2 / error) > 50


def test_checkpoint_folder(repository, client, expected):
    model = repository.add("elsewhere", config({"numerics": "exact", "checkpoint": "weights"}), checkpoint=None)
    (model / "1" / "weights").symlink_to(CHECKPOINT, target_is_directory=True)
    client.load("elsewhere")
    response = client.infer("elsewhere", prompt=PROMPT, gen_args=QUICK)
    assert np.array_equal(pixels(response.image), expected)


def test_dtype(repository, client, expected):
    repository.add("float32", config({"numerics": "exact", "dtype": "float32"}))
    client.load("float32")
    response = client.infer("float32", prompt=PROMPT, gen_args=QUICK)
    assert np.array_equal(pixels(response.image), expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("numerics", "sloppy"),
        ("dtype", "float8"),
        ("scheduler", "NoSuchScheduler"),
        ("max_unet_batch_size", "0"),
        ("max_pixels", "many"),
        ("max_steps", "-3"),
        ("default_gen_args", "{"),
        ("default_gen_args", '{"num_inference_steps": 0}'),
        ("default_gen_args", '{"no_such_argument": 1}'),
        ("checkpoint", "../../elsewhere"),
    ],
)
def test_bad_parameter_fails_the_load_and_is_named(repository, client, key, value):
    name = f"bad_{key}_{len(value)}"
    repository.add(name, config({key: value}))
    assert key in client.load_error(name)
    assert client.infer("exact", prompt=PROMPT, gen_args=QUICK).shape == [1, 1]


def test_unknown_parameter_is_a_warning(repository, client, server):
    repository.add("unknown_parameter", config({"max_stepz": "5"}))
    client.load("unknown_parameter")
    warnings = [line for line in server.log().splitlines() if line.startswith("W") and "max_stepz" in line]
    assert warnings


SHIPPED = {
    "sd_base": ("sd2_base", {}),
    "sd_depth": ("sd2_depth", {"image": waves(64, 64)}),
    "sd_inpaint": ("sd2_inpaint", {"image": waves(64, 64), "mask_image": spot(64, 64)}),
    "sd_upscale": ("x4_upscaler", {"image": waves(16, 16)}),
    "sdxl_base": ("sdxl_base", {}),
}


def test_every_shipped_configuration_is_tested():
    assert set(SHIPPED) == {folder.name for folder in (ROOT / "model_repository").iterdir()}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_configuration_for_a_cpu(repository, client, name):
    """Loads a folder of model_repository with configs/cpu.pbtxt instead of config.pbtxt, which requires a GPU."""
    checkpoint, images = SHIPPED[name]
    model = repository.folder / name
    shutil.copytree(ROOT / "model_repository" / name, model)
    (model / "1").mkdir(exist_ok=True)
    (model / "1" / "checkpoint").symlink_to(CHECKPOINTS / checkpoint, target_is_directory=True)
    assert "KIND_GPU" in (model / "config.pbtxt").read_text()
    shutil.copy(model / "configs" / "cpu.pbtxt", model / "config.pbtxt")
    client.load(name)
    inputs = {tensor: to_base64(image) for tensor, image in images.items()}
    response = client.infer(name, prompt=PROMPT, gen_args=QUICK, **inputs)
    assert text_chunk(response.image)["gen_args"]["seed"] == 11
    assert open_image(response.image).size == (64, 64)

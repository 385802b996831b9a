"""Loading: a bad checkpoint fails with its cause and does not affect other models; load, unload, load."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from linked_components import files
from support import CHECKPOINT, at_most, config, pixels, wait_for

PROMPT = "a cat on a mat"
QUICK = {"num_inference_steps": 2, "seed": 11}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    repository.add("good")
    client.load("good")


@pytest.fixture
def fails(repository, client):
    """Returns a function that damages a copy of the checkpoint, loads it, and returns the error."""

    def run(name, damage):
        damage(repository.add_copy(name))
        message = client.load_error(name)
        assert client.infer("good", prompt=PROMPT, gen_args=QUICK).shape == [1, 1], "the other model stopped serving"
        return message

    return run


@pytest.mark.parametrize(
    "path",
    [
        "model_index.json",
        "unet/config.json",
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_missing_file(fails, path):
    message = fails("missing_" + path.replace("/", "_"), lambda checkpoint: (checkpoint / path).unlink())
    assert path.split("/")[0] in message


def test_missing_checkpoint(repository, client):
    repository.add("nothing", checkpoint=None)
    assert "checkpoint" in client.load_error("nothing")


@pytest.mark.parametrize("keep", [0, 4, 1000, 0.5, -1])
def test_truncated_safetensors(fails, keep):
    def damage(checkpoint):
        content = (checkpoint / UNET).read_bytes()
        length = int(len(content) * keep) if isinstance(keep, float) else keep
        (checkpoint / UNET).write_bytes(content[:length])

    assert "diffusion_pytorch_model.safetensors" in fails(f"truncated_{str(keep).replace('.', '_')}", damage)


def test_safetensors_header_length_beyond_file(fails):
    def damage(checkpoint):
        content = (checkpoint / UNET).read_bytes()
        (checkpoint / UNET).write_bytes((2**63).to_bytes(8, "little") + content[8:])

    assert "diffusion_pytorch_model.safetensors" in fails("absurd_header", damage)


def test_missing_tensor(fails):
    def damage(checkpoint):
        tensors = load_file(checkpoint / UNET)
        del tensors["mid_block.resnets.0.conv1.weight"]
        save_file(tensors, checkpoint / UNET)

    assert "mid_block.resnets.0.conv1.weight" in fails("missing_tensor", damage)


def test_unused_tensor(fails):
    def damage(checkpoint):
        tensors = load_file(checkpoint / UNET)
        tensors["unused.weight"] = tensors["conv_in.bias"]
        save_file(tensors, checkpoint / UNET)

    assert "unused.weight" in fails("unused_tensor", damage)


def test_tensor_of_the_wrong_shape(fails):
    def damage(checkpoint):
        tensors = load_file(checkpoint / UNET)
        tensors["conv_in.bias"] = tensors["conv_in.bias"].reshape(-1, 2)
        save_file(tensors, checkpoint / UNET)

    assert "conv_in.bias" in fails("wrong_shape", damage)


def test_rewritten_checkpoint_loads(repository, client):
    """Shows that only the damage makes the tests above fail: a file that is written back unchanged loads."""
    checkpoint = repository.add_copy("rewritten")
    save_file(load_file(checkpoint / UNET), checkpoint / UNET)
    client.load("rewritten")
    usual = client.infer("good", prompt=PROMPT, gen_args=QUICK)
    rewritten = client.infer("rewritten", prompt=PROMPT, gen_args=QUICK)
    assert np.array_equal(pixels(rewritten.image), pixels(usual.image))


def test_pickle_is_refused_and_error_names_safetensors(fails):
    def damage(checkpoint):
        (checkpoint / UNET).rename(checkpoint / "unet" / "diffusion_pytorch_model.bin")

    message = fails("pickle", damage)
    assert "unet" in message and "diffusion_pytorch_model.bin" in message
    assert "safetensors" in message


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("model_index.json", "{"),
        ("model_index.json", '{"_class_name": "NoSuchPipeline"}'),
        ("unet/config.json", "[]"),
        ("scheduler/scheduler_config.json", '{"_class_name": "NoSuchScheduler"}'),
    ],
)
def test_bad_json(fails, path, content):
    name = f"bad_json_{path.split('/')[0].split('.')[0]}_{len(content)}"
    message = fails(name, lambda checkpoint: (checkpoint / path).write_text(content))
    assert path.split("/")[-1] in message or "NoSuch" in message


def test_unknown_block_type(fails):
    def damage(checkpoint):
        path = checkpoint / "unet" / "config.json"
        settings = json.loads(path.read_text())
        settings["down_block_types"][0] = "NoSuchBlock2D"
        path.write_text(json.dumps(settings))

    assert "down_block_types" in fails("no_such_block", damage)


def test_load_unload_load(repository, client):
    repository.add("comes_and_goes", config({"numerics": "exact"}))
    images = set()
    for _ in range(3):
        with at_most(10):
            client.load("comes_and_goes")
        images.add(client.infer("comes_and_goes", prompt=PROMPT, gen_args=QUICK).image)
        client.http.unload_model("comes_and_goes")
        wait_for(lambda: not client.http.is_model_ready("comes_and_goes"), 30, "the model is unloaded")
    assert len(images) == 1


def test_failed_model_loads_after_repair(repository, client):
    checkpoint = repository.add_copy("repaired")
    (checkpoint / UNET).rename(checkpoint / "aside")
    client.load_error("repaired")
    (checkpoint / "aside").rename(checkpoint / UNET)
    client.load("repaired")


def test_links_in_the_checkpoint_are_followed(repository, client, tmp_path):
    """The Hugging Face cache consists of links into a folder of blobs."""
    version = repository.add("links", checkpoint=None) / "1"
    for path in files(CHECKPOINT):
        at = version / "checkpoint" / path.relative_to(CHECKPOINT)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(path)
    client.load("links")
    assert client.infer("links", prompt=PROMPT, gen_args=QUICK).shape == [1, 1]

"""Loading: bad checkpoints fail with their cause while other models go on serving; load, unload, load."""

import json

import numpy as np
import pytest
from linked_components import files
from support import (
    CHECKPOINT,
    at_most,
    config,
    pixels,
    read_safetensors,
    wait_for,
    write_safetensors,
)

PROMPT = "a cat on a mat"
QUICK = {"num_inference_steps": 2, "seed": 11}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    repository.add("good")
    client.load("good")


@pytest.fixture
def fails(repository, client):
    """A function that damages a copy of the checkpoint and returns the message with which its load fails."""

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


def test_safetensors_with_an_absurd_header_length(fails):
    def damage(checkpoint):
        content = (checkpoint / UNET).read_bytes()
        (checkpoint / UNET).write_bytes((2**63).to_bytes(8, "little") + content[8:])

    assert "diffusion_pytorch_model.safetensors" in fails("absurd_header", damage)


def test_missing_tensor(fails):
    def damage(checkpoint):
        header, data = read_safetensors(checkpoint / UNET)
        del header["mid_block.resnets.0.conv1.weight"]
        write_safetensors(checkpoint / UNET, header, data)

    assert "mid_block.resnets.0.conv1.weight" in fails("missing_tensor", damage)


def test_unused_tensor(fails):
    def damage(checkpoint):
        header, data = read_safetensors(checkpoint / UNET)
        header["somebody_elses.weight"] = header["conv_in.bias"]
        write_safetensors(checkpoint / UNET, header, data)

    assert "somebody_elses.weight" in fails("unused_tensor", damage)


def test_tensor_of_the_wrong_shape(fails):
    def damage(checkpoint):
        header, data = read_safetensors(checkpoint / UNET)
        header["conv_in.bias"]["shape"] = [header["conv_in.bias"]["shape"][0] // 2, 2]
        write_safetensors(checkpoint / UNET, header, data)

    assert "conv_in.bias" in fails("wrong_shape", damage)


def test_rewritten_checkpoint_loads(repository, client):
    """The damage of the tests above is what they say it is: written back undamaged, the same file loads."""
    checkpoint = repository.add_copy("rewritten")
    write_safetensors(checkpoint / UNET, *read_safetensors(checkpoint / UNET))
    client.load("rewritten")
    usual = client.infer("good", prompt=PROMPT, gen_args=QUICK)
    rewritten = client.infer("rewritten", prompt=PROMPT, gen_args=QUICK)
    assert np.array_equal(pixels(rewritten.picture), pixels(usual.picture))


def test_pickles_are_refused_with_a_way_out(fails):
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


def test_block_type_that_does_not_exist(fails):
    def damage(checkpoint):
        path = checkpoint / "unet" / "config.json"
        settings = json.loads(path.read_text())
        settings["down_block_types"][0] = "NoSuchBlock2D"
        path.write_text(json.dumps(settings))

    assert "down_block_types" in fails("no_such_block", damage)


def test_load_unload_load(repository, client):
    repository.add("comes_and_goes", config({"numerics": "exact"}))
    pictures = set()
    for _ in range(3):
        with at_most(10):
            client.load("comes_and_goes")
        pictures.add(client.infer("comes_and_goes", prompt=PROMPT, gen_args=QUICK).picture)
        client.http.unload_model("comes_and_goes")
        wait_for(lambda: not client.http.is_model_ready("comes_and_goes"), 30, "the model is unloaded")
    assert len(pictures) == 1


def test_a_model_that_failed_loads_once_it_is_repaired(repository, client):
    checkpoint = repository.add_copy("repaired")
    (checkpoint / UNET).rename(checkpoint / "aside")
    client.load_error("repaired")
    (checkpoint / "aside").rename(checkpoint / UNET)
    client.load("repaired")


def test_links_in_the_checkpoint_are_followed(repository, client, tmp_path):
    """As in the Hugging Face cache, where every file is a link into a folder of blobs."""
    version = repository.add("links", checkpoint=None) / "1"
    for path in files(CHECKPOINT):
        at = version / "checkpoint" / path.relative_to(CHECKPOINT)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(path)
    client.load("links")
    assert client.infer("links", prompt=PROMPT, gen_args=QUICK).shape == [1, 1]

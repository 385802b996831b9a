"""Words of textual inversion: found in prompts, replaced while the model serves, and refused with a clear error."""

import concurrent.futures
import json
import pathlib

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import seeded_checkpoints
from support import CHECKPOINTS, ROOT, config, pixels

CHECKPOINT = CHECKPOINTS / "sd1"
GOLDENS = ROOT / "tests" / "data" / "goldens"
SIZE = {"height": 40, "width": 40, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def files():
    """The files of the goldens by their paths."""
    manifest = json.loads((GOLDENS / "textual_inversion.json").read_text())
    return {one["path"]: seeded_checkpoints.weights(one["content"]) for one in manifest["files"]}


def write(folder, name, content):
    folder.mkdir(exist_ok=True)
    new = folder / "new"
    new.write_bytes(content)
    new.rename(folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def folder(repository, client, files):
    """The folder of the embeddings of the model `embedded`."""
    model = repository.add("embedded", config({"numerics": "fast"}), checkpoint=CHECKPOINT)
    embeddings = pathlib.Path(model) / "1" / "embeddings"
    write(embeddings, "a-toy", files["embeddings/a-toy.safetensors"])
    write(embeddings, "easyneg", files["embeddings/easyneg.safetensors"])
    loras = pathlib.Path(model) / "1" / "loras"
    write(loras, "text", files["loras/text.safetensors"])
    client.load("embedded")
    return embeddings


def image(client, prompt, negative_prompt="", **gen_args):
    response = client.infer("embedded", prompt=prompt, negative_prompt=negative_prompt, gen_args={**SIZE, **gen_args})
    return pixels(response.image)


def refusal(client, prompt):
    with pytest.raises(InferenceServerException) as error:
        client.infer("embedded", prompt=prompt, gen_args=SIZE)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    return error.value.message()


def differ(images):
    return len({one.tobytes() for one in images}) == len(images)


def test_words_change_the_image(client, folder):
    lora = {"loras": [{"name": "text", "scale": 5}]}
    weighted = {"prompt_syntax": "weighted"}
    assert differ(
        [
            image(client, "a cat"),
            image(client, "a <cat-toy>"),
            image(client, "a easyneg"),
            image(client, "a <cat-toy> easyneg"),
            image(client, "a cat", "easyneg"),
            image(client, "a (<cat-toy>:1.5)", **weighted),
            image(client, "a (<cat-toy>:0.5)", **weighted),
            image(client, "a <cat-toy>", **lora),
            image(client, "a cat", **lora),
        ]
    )
    # Another case is another text.
    assert differ([image(client, "a <cat-toy>"), image(client, "a <CAT-TOY>")])


def test_log_names_the_words(server, folder):
    log = server.log()
    assert "model 'embedded': 2 embeddings: <cat-toy>, easyneg" in log


def test_added_replaced_and_removed_files_count_from_the_next_request(client, folder, files):
    without = image(client, "a lateword cat")
    write(folder, "lateword", files["embeddings/webui-one.safetensors"])
    first = image(client, "a lateword cat")
    write(folder, "lateword", files["embeddings/easyneg.safetensors"])
    second = image(client, "a lateword cat")
    assert differ([without, first, second])
    write(folder, "lateword", files["embeddings/webui-one.safetensors"])
    assert np.array_equal(image(client, "a lateword cat"), first)
    (folder / "lateword.safetensors").unlink()
    assert np.array_equal(image(client, "a lateword cat"), without)


def test_damaged_file_harms_no_other_request(client, folder):
    expected = image(client, "a <cat-toy>")
    write(folder, "brokenword", b"rubbish")
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            good = [pool.submit(image, client, "a <cat-toy>") for _ in range(4)]
            bad = [pool.submit(refusal, client, "a brokenword") for _ in range(4)]
            assert all(np.array_equal(future.result(), expected) for future in good)
            for future in bad:
                message = future.result()
                assert "prompt: " in message and "brokenword.safetensors: not a whole safetensors file" in message
    finally:
        (folder / "brokenword.safetensors").unlink()


def test_requests_with_different_words_share_calls(client, folder):
    prompts = ["a cat", "a <cat-toy>", "a easyneg", "<cat-toy> easyneg"]
    alone = [image(client, prompt, num_inference_steps=20) for prompt in prompts]
    calls = client.counter("diffusion_unet_calls_total", "embedded")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(image, client, prompt, num_inference_steps=20) for prompt in prompts]
        assert all(np.array_equal(future.result(), one) for future, one in zip(futures, alone, strict=True))
    assert client.counter("diffusion_unet_calls_total", "embedded") - calls < 3 * 21


def test_models_may_share_a_folder(repository, client, folder):
    repository.add("embedded_too", config({"numerics": "fast", "embeddings": str(folder)}), checkpoint=CHECKPOINT)
    client.load("embedded_too")
    response = client.infer("embedded_too", prompt="a <cat-toy>", gen_args=SIZE)
    assert np.array_equal(pixels(response.image), image(client, "a <cat-toy>"))

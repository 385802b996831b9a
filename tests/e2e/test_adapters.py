"""LoRAs by request: found by name, replaced while the model serves, and refused with a clear error."""

import concurrent.futures
import json
import os
import pathlib
import shutil

import pytest
from tritonclient.utils import InferenceServerException

import seeded_checkpoints
from support import CHECKPOINTS, ROOT, config, pixels, text_chunk

CHECKPOINT = CHECKPOINTS / "sd1"
GOLDENS = ROOT / "tests" / "data" / "goldens"
SIZE = {"height": 40, "width": 40, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def files():
    """The files of the goldens' LoRAs by their paths."""
    manifest = json.loads((GOLDENS / "adapters.json").read_text())
    return {one["path"]: one["content"] for one in manifest["files"]}


def write(files, folder, path, to=None):
    content = files[path]
    target = folder / (to or path)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(target.name + ".new")
    if "tensors" in content:
        new.write_bytes(seeded_checkpoints.weights(content))
    else:
        new.write_text(json.dumps(content))
    new.rename(target)


@pytest.fixture(scope="module")
def folder(repository, client, files):
    """The folder of the LoRAs of the model `adapted`."""
    model = repository.add("adapted", config({"numerics": "fast"}), checkpoint=CHECKPOINT)
    loras = pathlib.Path(model) / "1" / "loras"
    write(files, loras, "sd1-kohya.safetensors", "style.safetensors")
    write(files, loras, "sd1-folder/adapter_model.safetensors", "peft/adapter_model.safetensors")
    write(files, loras, "sd1-folder/adapter_config.json", "peft/adapter_config.json")
    client.load("adapted")
    return loras


def image(client, *loras, **gen_args):
    response = client.infer("adapted", prompt="a cat", gen_args={**SIZE, "loras": list(loras), **gen_args})
    return response.image


def refusal(client, loras):
    with pytest.raises(InferenceServerException) as error:
        client.infer("adapted", prompt="a cat", gen_args={**SIZE, "loras": loras})
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    return error.value.message()


def test_lora_changes_the_image_and_is_told(client, folder):
    plain = image(client)
    styled = image(client, {"name": "style"})
    other = image(client, {"name": "style", "scale": 0.5})
    both = image(client, {"name": "style"}, {"name": "peft", "scale": 0.7, "text_encoder_scale": 0})
    # The files differ in their texts too.
    assert len({pixels(file).tobytes() for file in (plain, styled, other, both)}) == 4
    assert image(client, {"name": "style"}) == styled
    told = text_chunk(styled)["gen_args"]
    assert told["loras"] == [{"name": "style", "scale": 1.0, "text_encoder_scale": 1.0}]


def test_lora_that_is_not_there_is_refused(client, folder):
    message = refusal(client, [{"name": "stile"}])
    assert "gen_args: `loras`, number 1: the model has no LoRA of this name; did you mean `style`?" in message
    assert "gen_args: `loras` must be a list of up to 8 objects" in refusal(client, [{"name": "../style"}])
    assert "gen_args: `loras` must be a list of up to 8 objects" in refusal(client, [{"name": "style", "scale": 20}])


def test_new_replaced_and_removed_files_count_from_the_next_request(client, folder, files):
    assert "no LoRA of this name" in refusal(client, [{"name": "late"}])
    write(files, folder, "sd1-peft-4.safetensors", "late.safetensors")
    first = image(client, {"name": "late"})
    write(files, folder, "sd1-peft-16.safetensors", "late.safetensors")
    assert image(client, {"name": "late"}) != first
    os.remove(folder / "late.safetensors")
    assert "no LoRA of this name" in refusal(client, [{"name": "late"}])


def test_damaged_lora_harms_no_other_request(client, folder):
    (folder / "broken.safetensors").write_bytes(b"rubbish")
    shutil.copy(folder / "style.safetensors", folder / "other.safetensors")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        good = [pool.submit(image, client, {"name": "other"}) for _ in range(4)]
        bad = [pool.submit(refusal, client, [{"name": "broken"}]) for _ in range(4)]
        assert len({future.result() for future in good}) == 1
        assert all("not a whole safetensors file" in future.result() for future in bad)


def test_requests_with_different_loras_share_calls(client, folder):
    loras = [[], [{"name": "style"}], [{"name": "peft"}], [{"name": "style", "scale": -0.5}, {"name": "peft"}]]
    alone = [image(client, *one, num_inference_steps=20) for one in loras]
    calls = client.counter("diffusion_unet_calls_total", "adapted")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(image, client, *one, num_inference_steps=20) for one in loras]
        assert [future.result() for future in futures] == alone
    assert client.counter("diffusion_unet_calls_total", "adapted") - calls < 3 * 21


def test_metrics_count_the_loras(client, folder):
    def values():
        names = ("adapters_loaded", "adapters_bytes", "adapter_hits_total", "adapter_loads_total")
        return [client.counter(f"diffusion_{name}", "adapted") for name in names]

    image(client, {"name": "style"})
    loaded, size, hits, loads = values()
    assert loaded > 0 and size > 0 and loads > 0
    image(client, {"name": "style"})
    assert values() == [loaded, size, hits + 1, loads]


def test_default_gen_args_may_have_loras(repository, client, files, folder):
    defaults = json.dumps({"loras": [{"name": "style"}]})
    repository.add(
        "styled",
        config({"numerics": "fast", "loras": str(folder), "default_gen_args": defaults}),
        checkpoint=CHECKPOINT,
    )
    client.load("styled")
    styled = image(client, {"name": "style"})
    plain = image(client)
    default = client.infer("styled", prompt="a cat", gen_args=SIZE).image
    without = client.infer("styled", prompt="a cat", gen_args={**SIZE, "loras": []}).image
    assert (pixels(default) == pixels(styled)).all() and (pixels(without) == pixels(plain)).all()
    assert (pixels(styled) != pixels(plain)).any()

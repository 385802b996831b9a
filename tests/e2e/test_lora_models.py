"""LoRAs as models of their own: one base for all of them, in memory and in the calls of the UNet."""

import concurrent.futures
import json
import re
import shutil
import subprocess

import pytest
from tritonclient.utils import InferenceServerException

import notebook
import seeded_checkpoints
from support import CHECKPOINTS, ROOT, config, pixels, unpack, wait_for

CHECKPOINT = CHECKPOINTS / "sd1"
COMMAND = ROOT / "dist" / "bin" / "triton-diffusion"
SIZE = {"height": 40, "width": 40, "num_inference_steps": 2, "seed": 3}
# In the manifest of the goldens, and what is left of their names here.
STYLES = ("sd1-peft-1", "sd1-peft-4", "sd1-peft-16", "sd1-kohya")
FAST = {"numerics": "fast"}


def command(*arguments):
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def digest_of(folder):
    return json.loads(command("inspect", "--json", folder))["digest"]


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """A folder of LoRAs."""
    folder = tmp_path_factory.mktemp("loras")
    manifest = json.loads((ROOT / "tests" / "data" / "goldens" / "adapters.json").read_text())
    contents = {one["path"]: one["content"] for one in manifest["files"]}
    for style in STYLES:
        (folder / f"{style}.safetensors").write_bytes(seeded_checkpoints.weights(contents[f"{style}.safetensors"]))
    return folder


@pytest.fixture(scope="module")
def base(repository, client, loras):
    """The name of the base, whose requests may ask for the LoRAs too."""
    repository.add("base", config({**FAST, "loras": str(loras)}), checkpoint=CHECKPOINT)
    client.load("base")
    return "base"


@pytest.fixture
def add(repository, client, loras):
    """Adds a model of a LoRA and loads it; unloads and removes all of them after the test."""
    added = []

    def add(name, style=STYLES[0], load=True, **parameters):
        text = config({**FAST, "base": "base", "lora": "style.safetensors", **parameters})
        folder = repository.add(name, text, checkpoint=None)
        shutil.copy(loras / f"{style}.safetensors", folder / "1" / "style.safetensors")
        added.append(name)
        if load:
            client.load(name)
        return folder

    yield add
    for name in added:
        client.http.unload_model(name)
        wait_for(lambda name=name: not client.http.is_model_ready(name), 20, f"{name} is unloaded")
        shutil.rmtree(repository.folder / name)


def image(client, model, **gen_args):
    return client.infer(model, prompt="a cat", gen_args={**SIZE, **gen_args}).image


def same(one, other):
    return (pixels(one) == pixels(other)).all()


def weights(client):
    return client.server.metric("diffusion_weights_bytes", device="cpu")


@pytest.mark.parametrize("naming", ["name", "path", "digest"])
def test_model_gives_the_images_of_its_base_with_the_lora(client, base, add, naming):
    before = weights(client)
    named = {"name": "base", "path": str(CHECKPOINT), "digest": digest_of(CHECKPOINT)}
    add("styled", base=named[naming], lora_scale="0.7")
    assert weights(client) == before, "the base is in memory once"
    asked = image(client, base, loras=[{"name": STYLES[0], "scale": 0.7}])
    assert same(image(client, "styled"), asked)
    assert not same(asked, image(client, base))
    assert re.search(r"instance 'styled_\w+': shares an engine with other instances", client.server.log())


def test_requests_of_models_share_calls_and_each_has_its_image(client, base, add):
    for style in STYLES:
        add(style, style=style)
    models = [base, *STYLES]
    arguments = {"num_inference_steps": 40}
    alone = [image(client, model, **arguments) for model in models]

    def numbers(model):
        names = ("unet_calls_total", "unet_batch_entries_total")
        return [client.counter(f"diffusion_{name}", model) for name in names]

    def entries_of_calls(model):
        return client.server.metric("diffusion_unet_batch_size_sum", model=model, version="1") or 0

    before = [numbers(model) for model in models]
    shared_before = [entries_of_calls(model) for model in models]
    with concurrent.futures.ThreadPoolExecutor(len(models)) as pool:
        futures = [pool.submit(image, client, model, **arguments) for model in models]
        assert [future.result() for future in futures] == alone
    for model, (calls, entries) in zip(models, before, strict=True):
        after = numbers(model)
        # A scheduler may need one more call than it has steps.
        assert 40 <= after[0] - calls <= 41, "a model counts the calls that it takes part in"
        # Without and with the prompt.
        assert after[1] - entries == 2 * (after[0] - calls), "a model counts its own entries"
    shared = [after - before for after, before in zip(map(entries_of_calls, models), shared_before, strict=True)]
    # Alone, a call has 2 entries.
    assert max(shared) > 3 * 40, "no call had the entries of several models"


def test_limits_and_arguments_are_those_of_the_model(client, base, add):
    add("limited", max_steps="3", default_gen_args=json.dumps({"num_inference_steps": 2}))
    assert "num_inference_steps" in client.refused("limited", prompt="a cat", gen_args={"num_inference_steps": 4})
    side = {"height": 40, "width": 40, "seed": 3}
    assert same(client.infer("limited", prompt="a cat", gen_args=side).image, image(client, "limited"))
    assert image(client, base, num_inference_steps=4)


def test_model_that_is_unloaded_leaves_the_others(client, repository, base, add):
    add("first", style=STYLES[0])
    add("second", style=STYLES[1])
    expected = image(client, "second")
    steps = {"num_inference_steps": 300}
    running = [client.start(model, prompt="a cat", gen_args={**SIZE, **steps})[1] for model in ("first", "second")]
    wait_for(lambda: client.server.metric("diffusion_jobs_running", model="second", version="1") == 1, 20, "it runs")
    client.http.unload_model("first")
    # The requests of both are computed to their ends.
    assert all(future.result(timeout=120).image for future in running)
    wait_for(lambda: not client.http.is_model_ready("first"), 20, "the model is unloaded")
    client.http.unload_model(base)
    wait_for(lambda: not client.http.is_model_ready(base), 20, "the base is unloaded")
    assert same(image(client, "second"), expected)
    before = weights(client)
    client.load(base)
    assert weights(client) == before and before > 0
    client.load("first")
    assert same(image(client, "second"), expected)


def test_other_parameters_of_the_engine_need_another_engine(client, base, add):
    add("exact", numerics="exact")
    assert "model 'exact': shares no engine with models of its base whose parameters differ" in client.server.log()
    assert image(client, "exact")


def test_lora_with_which_the_model_cannot_load_is_refused(client, base, add):
    add("unknown", load=False, base="nothing")
    assert "parameter `base`: " in client.load_error("unknown")
    digest = "blake3:" + "0" * 64
    add("no_digest", load=False, base=digest)
    assert "no model that is loaded has this digest" in client.load_error("no_digest")
    folder = add("damaged", load=False)
    (folder / "1" / "style.safetensors").write_bytes(b"rubbish")
    assert "style.safetensors" in client.load_error("damaged")
    (folder / "1" / "style.safetensors").unlink()
    assert "style.safetensors: no LoRA" in client.load_error("damaged")
    outside = add("outside", load=False, base="base", outside_links="refuse")
    assert "outside_links" in client.load_error("outside"), "the checkpoint of the base is a link"
    assert outside.is_dir()


def test_base_of_the_container_is_found_by_its_digest(client, bases, add):
    link = bases / "any name"
    link.symlink_to(CHECKPOINTS / "sd2_base", target_is_directory=True)
    digest = digest_of(link)
    add("of_container", load=False, base=digest)
    client.load("of_container")
    assert client.infer("of_container", prompt="a cat", gen_args={"num_inference_steps": 2}).image


def test_packed_lora_serves_on_a_multi_model_endpoint(server, client, loras, tmp_path):
    """As SageMaker does it: each archive is unpacked into a separate folder and loaded by its URL."""

    def send(method, route, body=None, target=None):
        return notebook.send(method, f"{server.sagemaker_url}/models{route}", body, "application/json", target)

    def load(name, *arguments):
        archive = tmp_path / f"{name}.tar.gz"
        command("pack", *arguments, "--name", name, "--out", archive, "--kind", "cpu", "--parameter", "numerics=fast")
        folder = tmp_path / "unpacked" / name / "model"
        unpack(archive, folder)
        status, _, body = send("POST", "", {"model_name": name, "url": str(folder)}, f"{name}.tar.gz")
        if status == 400 and b"/opt/ml/models" in body:
            pytest.skip("this tritonserver loads from /opt/ml/models only")
        assert status == 200, body
        return archive

    def invoke(name):
        gen_args = json.dumps({**SIZE, "num_inference_steps": 10})
        inputs = notebook.body_of(prompt="a cat", gen_args=gen_args)
        status, _, body = send("POST", f"/{name}/invoke", inputs, f"{name}.tar.gz")
        assert status == 200, body
        return notebook.image_of(body).tobytes()

    whole = load("whole", CHECKPOINT)
    styles = {f"p{number}": loras / f"{style}.safetensors" for number, style in enumerate(STYLES)}
    packed = [load(name, CHECKPOINT, "--lora", lora) for name, lora in styles.items()]
    names = ["whole", *styles]
    try:
        assert max(archive.stat().st_size for archive in packed) < whole.stat().st_size / 3
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            images = list(pool.map(invoke, names))
        assert len(set(images)) == len(names)
        assert [invoke(name) for name in names] == images
    finally:
        for name in names:
            status, _, body = send("DELETE", f"/{name}", target=f"{name}.tar.gz")
            assert status == 200, body


def test_base_whose_files_are_gone_serves_further_loras(repository, client, loras):
    """SageMaker may unload the model of the base and remove its files while LoRA models use it."""
    checkpoint = repository.add_copy("whole", config(FAST))
    shutil.rmtree(checkpoint)
    shutil.copytree(CHECKPOINTS / "sd2_768v", checkpoint)
    digest = digest_of(checkpoint)
    client.load("whole")
    for name in ("before", "after"):
        text = config({**FAST, "base": digest, "lora": "style.safetensors"})
        folder = repository.add(name, text, checkpoint=None)
        shutil.copy(loras / f"{STYLES[0]}.safetensors", folder / "1" / "style.safetensors")
    client.load("before")
    client.http.unload_model("whole")
    wait_for(lambda: not client.http.is_model_ready("whole"), 20, "the base is unloaded")
    shutil.rmtree(repository.folder / "whole")
    client.load("after")
    assert same(image(client, "after"), image(client, "before"))


def test_pack_refuses_a_lora_that_does_not_fit(loras, tmp_path):
    done = subprocess.run(
        [COMMAND, "pack", CHECKPOINTS / "x4_upscaler", "--lora", loras / f"{STYLES[0]}.safetensors", "--name", "wrong"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "the server would refuse this model" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_model_without_instances_left_is_not_found(client, base, add):
    add("gone")
    client.http.unload_model("gone")
    wait_for(lambda: not client.http.is_model_ready("gone"), 20, "the model is unloaded")
    with pytest.raises(InferenceServerException):
        image(client, "gone")
    assert image(client, base)

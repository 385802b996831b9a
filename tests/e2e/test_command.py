"""The command `triton-diffusion`: what it packs is served, and what it makes is what the server makes."""

import json
import subprocess
import tarfile

import pytest

import notebook
from notebook import body_of
from support import CHECKPOINTS, ROOT, sent, spot, waves

COMMAND = ROOT / "dist" / "bin" / "triton-diffusion"
# Model -> what its request has beside the prompt.
PICTURES = {
    "sd_base": {},
    "sd_depth": {"image": sent(waves(64, 64))},
    "sd_inpaint": {"image": sent(waves(64, 64)), "mask_image": sent(spot(64, 64))},
    "sd_upscale": {"image": sent(waves(32, 32))},
}
GEN_ARGS = {"num_inference_steps": 2, "seed": 5}


def run(*arguments, folder):
    done = subprocess.run([COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def endpoint(server, tmp_path_factory):
    """The four models, packed by the command and loaded as SageMaker loads them: {model: URL of its resource}."""
    folder = tmp_path_factory.mktemp("packed")
    urls = {}
    for number, (model, (checkpoint, _)) in enumerate(notebook.MODELS.items(), 1):
        run("pack", CHECKPOINTS / checkpoint, "--name", model, "--dtype", "float16", "--kind", "cpu", folder=folder)
        unpacked = folder / f"{number:064x}" / "model"
        with tarfile.open(folder / f"{model}.tar.gz") as archive:
            archive.extractall(unpacked, filter="data")
        body = {"model_name": f"{number:064x}", "url": str(unpacked)}
        status, _, reply = notebook.send("POST", f"{server.sagemaker_url}/models", body, target=f"{model}.tar.gz")
        if status == 400 and b"/opt/ml/models" in reply:
            pytest.skip("this tritonserver loads from /opt/ml/models only")
        assert status == 200, reply
        urls[model] = f"{server.sagemaker_url}/models/{number:064x}"
    yield urls
    for model, url in urls.items():
        assert notebook.send("DELETE", url, target=f"{model}.tar.gz")[0] == 200
        assert notebook.send("GET", url, target=f"{model}.tar.gz")[0] == 404


@pytest.mark.parametrize("model", PICTURES)
def test_what_is_packed_is_served_to_sagemaker(endpoint, model):
    body = body_of(prompt="a cat", gen_args=json.dumps(GEN_ARGS), **PICTURES[model])
    status, _, reply = notebook.send("POST", f"{endpoint[model]}/invoke", body, target=f"{model}.tar.gz")
    assert status == 200, reply
    assert notebook.picture_of(reply).size == ((128, 128) if model == "sd_upscale" else (64, 64))
    assert notebook.send("GET", endpoint[model], target=f"{model}.tar.gz")[0] == 200
    status, _, reply = notebook.send(
        "POST", f"{endpoint[model]}/invoke", body_of(prompt="a cat", gen_args="{"), target=f"{model}.tar.gz"
    )
    assert status == 400, reply


def test_pack_serve_invoke_and_generate_agree(server, client, repository, tmp_path):
    """The README's way: the answer of the server, fetched by `invoke`, and `generate` without one are the same
    bytes."""
    run(
        "pack",
        CHECKPOINTS / "sd2_base",
        "--name",
        "packed",
        "--kind",
        "cpu",
        "--out",
        repository.folder,
        folder=tmp_path,
    )
    client.load("packed")
    url = f"http://{server.http_address}"
    arguments = ["--prompt", "a cat", "--set", "num_inference_steps=3", "--seed", 9]
    told = run("invoke", "packed", "--url", url, *arguments, "--out", "asked.png", folder=tmp_path)
    assert "seed: 9" in told
    checkpoint = repository.folder / "packed" / "1" / "checkpoint"
    run("generate", checkpoint, "--model-name", "packed", *arguments, "--out", "made.png", folder=tmp_path)
    asked = (tmp_path / "asked.png").read_bytes()
    assert asked == (tmp_path / "made.png").read_bytes()
    answer = client.infer("packed", prompt="a cat", gen_args={"num_inference_steps": 3, "seed": 9})
    assert answer.picture == asked


def test_inspect_says_what_the_server_says(tmp_path):
    about = json.loads(run("inspect", CHECKPOINTS / "sd2_depth", "--json", folder=tmp_path))
    assert about["pipeline"] == "StableDiffusionDepth2ImgPipeline"
    assert about["problems"] == [] and about["loaded"] is True

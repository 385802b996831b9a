"""The command `triton-diffusion`: the server loads its archives, and both generate the same images."""

import json
import subprocess

import pytest

import notebook
from client import to_base64
from notebook import body_of
from support import CHECKPOINTS, ROOT, spot, unpack, waves

COMMAND = ROOT / "dist" / "bin" / "triton-diffusion"
# Model -> the images of its request.
IMAGES = {
    "sd_base": {},
    "sd_depth": {"image": to_base64(waves(64, 64))},
    "sd_inpaint": {"image": to_base64(waves(64, 64)), "mask_image": to_base64(spot(64, 64))},
    "sd_upscale": {"image": to_base64(waves(32, 32))},
}
GEN_ARGS = {"num_inference_steps": 2, "seed": 5}


def run(*arguments, folder):
    done = subprocess.run([COMMAND, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def endpoint(server, tmp_path_factory):
    """Packs the four models with the command and loads them as SageMaker does; yields {model: URL of its resource}."""
    folder = tmp_path_factory.mktemp("packed")
    urls = {}
    for number, (model, (checkpoint, _)) in enumerate(notebook.MODELS.items(), 1):
        run("pack", CHECKPOINTS / checkpoint, "--name", model, "--dtype", "float16", "--kind", "cpu", folder=folder)
        unpacked = folder / f"{number:064x}" / "model"
        unpack(folder / f"{model}.tar.gz", unpacked)
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


@pytest.mark.parametrize("model", IMAGES)
def test_packed_model_serves_sagemaker(endpoint, model):
    body = body_of(prompt="a cat", gen_args=json.dumps(GEN_ARGS), **IMAGES[model])
    status, _, reply = notebook.send("POST", f"{endpoint[model]}/invoke", body, target=f"{model}.tar.gz")
    assert status == 200, reply
    assert notebook.image_of(reply).size == ((128, 128) if model == "sd_upscale" else (64, 64))
    assert notebook.send("GET", endpoint[model], target=f"{model}.tar.gz")[0] == 200
    status, _, reply = notebook.send(
        "POST", f"{endpoint[model]}/invoke", body_of(prompt="a cat", gen_args="{"), target=f"{model}.tar.gz"
    )
    assert status == 400, reply


def test_pack_serve_invoke_and_generate_agree(server, client, repository, tmp_path):
    """Checks that `invoke`, `generate` and a client get the same bytes from one packed model."""
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
    output = run("invoke", "packed", "--url", url, *arguments, "--out", "invoked.png", folder=tmp_path)
    assert "seed: 9" in output
    checkpoint = repository.folder / "packed" / "1" / "checkpoint"
    run("generate", checkpoint, "--model-name", "packed", *arguments, "--out", "generated.png", folder=tmp_path)
    invoked = (tmp_path / "invoked.png").read_bytes()
    assert invoked == (tmp_path / "generated.png").read_bytes()
    response = client.infer("packed", prompt="a cat", gen_args={"num_inference_steps": 3, "seed": 9})
    assert response.image == invoked


def test_inspect_reports_a_loadable_checkpoint(tmp_path):
    about = json.loads(run("inspect", CHECKPOINTS / "sd2_depth", "--json", folder=tmp_path))
    assert about["pipeline"] == "StableDiffusionDepth2ImgPipeline"
    assert about["problems"] == [] and about["loaded"] is True

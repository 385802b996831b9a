"""The wheel, the archive and dist/ as users run them: the command, and the backend in a real tritonserver."""

import base64
import contextlib
import io
import pathlib
import subprocess

import openai
import pytest
from PIL import Image

import client
import seeded_checkpoints
import server as triton
from installation import DIST, run

CHECKPOINT = seeded_checkpoints.OUT / "sd2_base"
ARGUMENTS = ["--prompt", "a cat", "--set", "num_inference_steps=2", "--seed", 5]


@pytest.fixture(scope="module", params=["wheel", "archive", "dist"])
def installed(request):
    """Yields the command, the folder of backends next to it, and the folder that has libtorch."""
    if request.param == "wheel":
        environment = request.getfixturevalue("environment")
        packages = environment.packages
        return environment.command, packages / "triton_diffusion" / "backends", packages / "torch" / "lib"
    if request.param == "archive":
        backends = request.getfixturevalue("backends")
        return backends / "diffusion" / "triton-diffusion", backends, backends / "diffusion"
    return DIST / "bin" / "triton-diffusion", DIST / "backends", DIST / "backends" / "diffusion"


def test_command_finds_backend_directory(installed, tmp_path):
    command, backends, _ = installed
    assert run(command, "backend-directory", folder=tmp_path) == f"{backends}\n"


def test_server_and_command_agree(installed, tmp_path):
    command, _, libtorch = installed
    run(command, "generate", CHECKPOINT, *ARGUMENTS, "--model-name", "sd", "--out", "generated.png", folder=tmp_path)
    run(command, "pack", CHECKPOINT, "--name", "sd", "--kind", "cpu", "--out", "models", folder=tmp_path)
    found = run(command, "backend-directory", folder=tmp_path).strip()
    environment = {"CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": None, "TRITON_DIFFUSION_CUDA_PATH": None}
    server = triton.TritonServer(
        tmp_path / "models", tmp_path / "log", models=["sd"], backends=found, environment=environment
    )
    with server:
        url = f"http://{server.http_address}"
        run(command, "invoke", "sd", "--url", url, *ARGUMENTS, "--out", "served.png", folder=tmp_path)
        mapped = mapped_files(server.process.pid)
    assert (tmp_path / "served.png").read_bytes() == (tmp_path / "generated.png").read_bytes()
    assert mapped["libtriton_diffusion.so"] == pathlib.Path(found, "diffusion", "libtriton_diffusion.so")
    assert mapped["libtorch_cpu.so"] == (libtorch / "libtorch_cpu.so").resolve()


def mapped_files(pid):
    """Returns {name: path} of the files that a process has mapped."""
    lines = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = [pathlib.Path(line.split(maxsplit=5)[5]) for line in lines if line.count("/")]
    return {path.name: path for path in paths}


def test_wheel_serves_the_demo(environment, tmp_path):
    """Serves the demo's models in an environment that has the wheel, and no compiler in its PATH."""
    demo = pathlib.Path(triton.ROOT, "demo", "models")
    models = ["sd_base", "sd_depth", "sd_inpaint", "sd_upscale"]
    for model in models:
        run(
            environment.command,
            "pack",
            demo / model,
            "--name",
            model,
            "--kind",
            "cpu",
            "--decoupled",
            "--out",
            tmp_path / "models",
        )
    found = run(environment.command, "backend-directory", folder=tmp_path).strip()
    image = client.image_file(Image.new("RGB", (64, 64), "green"))
    mask = client.image_file(Image.new("RGBA", (64, 64), (0, 0, 0, 0)))
    plain = {"CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": None, "PATH": str(environment.folder / "bin")}
    server = triton.TritonServer(
        tmp_path / "models", tmp_path / "log", models=models, backends=found, environment=plain
    )
    with (
        server,
        gateway(environment.command, server.grpc_address) as url,
        openai.OpenAI(base_url=url, api_key="none") as api,
    ):
        steps = {"prompt": "a red circle", "extra_body": {"num_inference_steps": 2}}
        replies = [api.images.generate(model="sd_base", **steps)]
        for model, more in ("sd_depth", {}), ("sd_inpaint", {"mask": ("mask.png", mask)}), ("sd_upscale", {}):
            replies.append(api.images.edit(model=model, image=("image.png", image), **steps, **more))
    sizes = [Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json))).size for reply in replies]
    assert sizes == [(128, 128), (64, 64), (64, 64), (256, 256)]


@contextlib.contextmanager
def gateway(command, triton_address):
    """Runs the gateway on a free port of loopback. Yields the URL of OpenAI's API."""
    arguments = ["gateway", "--triton", triton_address, "--listen", "127.0.0.1:0"]
    with subprocess.Popen([command, *arguments], env={}, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[-1] + "/v1"
        finally:
            process.terminate()

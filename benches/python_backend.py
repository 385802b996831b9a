"""Runs the peer of the benches: diffusers behind Triton's Python backend, in the same tritonserver."""

import pathlib
import shutil
import subprocess
import sys
import time

import tritonclient.http as httpclient

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))
import seeded_checkpoints
from client import input_tensors, read_response
from server import BACKENDS, ROOT, ServerError, TritonServer, pytriton_folder

WORK = ROOT / "target" / "bench"
TINY = seeded_checkpoints.write() / "sd2_base"
REFERENCE_VENV = ROOT / ".venv-reference"

TENSORS = """\
max_batch_size: 8
input [
  { name: "prompt" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "gen_args" data_type: TYPE_STRING dims: [ 1 ] optional: true }
]
output [{ name: "generated_image" data_type: TYPE_STRING dims: [ -1 ] }]
instance_group [{ kind: KIND_CPU }]
"""

# The usual way to serve diffusers: a pipeline in a Python model that runs requests one by one.
MODEL_PY = """\
import base64, io, json, pathlib

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from diffusers import StableDiffusionPipeline


class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"]) / args["model_version"] / "checkpoint"
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
        self.pipe.set_progress_bar_config(disable=True)

    def execute(self, requests):
        responses = []
        for request in requests:
            prompt = pb_utils.get_input_tensor_by_name(request, "prompt").as_numpy().item().decode()
            gen_args = pb_utils.get_input_tensor_by_name(request, "gen_args").as_numpy().item().decode()
            images = []
            for image in self.pipe(prompt=prompt, **json.loads(gen_args)).images:
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                images.append(base64.b64encode(buffer.getvalue()))
            output = pb_utils.Tensor("generated_image", np.array([images], dtype=object))
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
"""


def add_model(repository, name, backend, checkpoint, **parameters):
    """Adds a model of the backend `diffusion` or `python` with a link to its checkpoint.

    `parameters` are those of config.pbtxt.
    """
    version = repository / name / "1"
    version.mkdir(parents=True)
    config = f'backend: "{backend}"\n{TENSORS}'
    for key, value in parameters.items():
        config += f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
    (repository / name / "config.pbtxt").write_text(config)
    (version / "checkpoint").symlink_to(checkpoint.resolve(), target_is_directory=True)
    if backend == "python":
        (version / "model.py").write_text(MODEL_PY)


def make_backends(folder, python_version):
    """Makes a backend folder with this backend and the Python backend; its stub is for `python_version`.

    Returns the folder of the server package's libraries.
    """
    shutil.rmtree(folder, ignore_errors=True)
    package = pytriton_folder()
    if package is None:
        raise ServerError("the Python backend comes with the nvidia-pytriton package: run 'make setup'")
    stub = package / "tritonserver" / "python_backend_stubs" / python_version / "triton_python_backend_stub"
    if not stub.exists():
        raise ServerError(f"the server package has no Python backend for Python {python_version}")
    (folder / "python").mkdir(parents=True)
    (folder / "diffusion").symlink_to(BACKENDS / "diffusion", target_is_directory=True)
    for path in (package / "tritonserver" / "backends" / "python").iterdir():
        if path.is_file():
            (folder / "python" / path.name).symlink_to(path)
    (folder / "python" / stub.name).symlink_to(stub)
    return package.parent / "nvidia_pytriton.libs"


def ask_python(python, expression):
    """Evaluates an expression with sys and sysconfig in another interpreter."""
    code = f"import sys, sysconfig; print({expression})"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def start(work, reference_venv):
    """Makes a server for `work/model_repository` with both backends; the caller starts it.

    The Python backend uses the packages of `reference_venv`. Both backends have their own defaults of OpenMP.
    """
    python = reference_venv / "bin" / "python"
    version = ask_python(python, "'%d.%d' % sys.version_info[:2]")
    library_folder = ask_python(python, "sysconfig.get_config_var('LIBDIR')")
    libraries = make_backends(work / "backends", version)
    # The stub uses the packages of the first `python3` in PATH. The stub and the server need libpython and the server's
    # libraries.
    site = ask_python(python, "sysconfig.get_paths()['platlib']")
    environment = {
        "LD_LIBRARY_PATH": f"{library_folder}:{libraries}",
        "PYTHONPATH": site,
        "PATH": f"{reference_venv / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        # `make` sets it for tests.
        "GOMP_SPINCOUNT": None,
    }
    return TritonServer(
        work / "model_repository", work / "server.log", backends=work / "backends", environment=environment
    )


def infer(client, model, side=None):
    """Generates one image with two steps; its height and width are `side`, or the model's."""
    gen_args = {"num_inference_steps": 2} | ({"height": side, "width": side} if side else {})
    inputs = {"prompt": "a cat on a mat", "gen_args": gen_args}
    response = read_response(client.infer(model, input_tensors(httpclient, inputs)))
    if response.shape != [1, 1]:
        raise ServerError(f"{model} did not return one image")


def load_once(client, model, side=None):
    """Loads a model, generates an image and unloads the model; returns the seconds of the load."""
    started = time.monotonic()
    client.load_model(model)
    seconds = time.monotonic() - started
    infer(client, model, side)
    client.unload_model(model)
    while client.is_model_ready(model):
        time.sleep(0.05)
    return seconds

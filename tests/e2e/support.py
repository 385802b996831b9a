"""Shared by the end-to-end tests: model repositories, a client, test images, and checks of errors."""

import concurrent.futures
import contextlib
import io
import json
import pathlib
import shutil
import tarfile
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from PIL import Image
from tritonclient.utils import InferenceServerException

import seeded_checkpoints
from client import input_tensors, read_response

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Generated before the first test; see conftest.py.
CHECKPOINTS = seeded_checkpoints.OUT
CHECKPOINT = CHECKPOINTS / "sd2_base"
# Default height and width of an image of CHECKPOINT: sample_size 8, times 8.
DEFAULT_SIZE = 64
# Seconds after which a request without a response fails its test.
TIMEOUT = 120.0

# Words that make SageMaker's front end turn an error into 507 (insufficient storage).
MEMORY_WORDS = (
    "CUDA out of memory",
    "CUDA_OUT_OF_MEMORY",
    "Out of memory",
    "Out Of Memory",
    "out of memory",
    "MemoryError",
    "OutOfMemory",
    "OOM",
    "Failed to allocate memory",
    "failed to allocate memory",
    "No space left on device",
)
GROUPS = pathlib.Path("/sys/fs/cgroup")
# Is in texts that a test sends; no error may contain it.
SECRET = "zanzibarOutOfMemory"


def unpack(archive, folder):
    """Unpacks an archive of the command. Python 3.11.2 of Debian 12 has no filters."""
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as opened:
        opened.extractall(folder, **safe)


def config(parameters=None, dims=None, max_batch_size=8):
    """Returns a config.pbtxt for a CPU instance. With `dims`, it lists the inputs, with these dims, and the output."""
    lines = ['backend: "diffusion"', f"max_batch_size: {max_batch_size}", "instance_group [{ kind: KIND_CPU }]"]
    if dims is not None:
        for name, optional in (("prompt", False), ("negative_prompt", True), ("gen_args", True)):
            flag = " optional: true" if optional else ""
            lines.append(f'input [{{ name: "{name}" data_type: TYPE_STRING dims: {dims}{flag} }}]')
        lines.append('output [{ name: "generated_image" data_type: TYPE_STRING dims: [ -1 ] }]')
    for key, value in (parameters or {}).items():
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}')
    return "\n".join(lines) + "\n"


class Repository:
    """A folder of models for one server."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def add(self, name, text=None, checkpoint=CHECKPOINT):
        """Adds a model with the config.pbtxt `text` and a link to `checkpoint`. Returns the model's folder."""
        model = self.folder / name
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(config() if text is None else text)
        if checkpoint is not None:
            (model / "1" / "checkpoint").symlink_to(checkpoint, target_is_directory=True)
        return model

    def add_copy(self, name, text=None):
        """Adds a model with a copy of the checkpoint, which a test may damage. Returns the checkpoint's folder."""
        checkpoint = self.add(name, text, checkpoint=None) / "1" / "checkpoint"
        shutil.copytree(CHECKPOINT, checkpoint)
        return checkpoint


def open_image(file):
    """Decodes the bytes of an image file with PIL."""
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


def pixels(file):
    """Decodes the bytes of an image file into an int64 array [height, width, 3]."""
    return np.asarray(open_image(file).convert("RGB")).astype(np.int64)


def waves(width, height, phase=0.0):
    """Makes a smooth RGB image."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [np.sin(x * (0.11 + 0.05 * c) + phase) + np.cos(y * (0.13 - 0.03 * c) + c + phase) for c in range(3)]
    return Image.fromarray(((np.stack(channels, axis=-1) + 2) / 4 * 255).round().astype(np.uint8))


def spot(width, height):
    """Makes a mask: a white ellipse on black."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    return Image.fromarray(((np.hypot((x - 0.55) / 0.3, (y - 0.45) / 0.35) < 1) * 255).astype(np.uint8))


def slope(width, height):
    """Makes a depth map of 8 bits."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(((x * 2 + y * 3) % 256).astype(np.uint8))


def text_chunk(file):
    """Returns the JSON object in the text chunk `parameters` of a PNG."""
    return json.loads(open_image(file).text["parameters"])


class Client:
    """Sends requests to one server. Inputs have the values that `client.input_tensors` takes."""

    def __init__(self, server):
        self.server = server
        self.grpc = grpcclient.InferenceServerClient(server.grpc_address)
        self.http = httpclient.InferenceServerClient(server.http_address, network_timeout=TIMEOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.grpc.close()
        self.http.close()

    def infer(self, model, **inputs):
        """Sends one request over gRPC."""
        return read_response(self.grpc.infer(model, input_tensors(grpcclient, inputs), client_timeout=TIMEOUT))

    def infer_http(self, model, **inputs):
        """Sends one request over HTTP."""
        return read_response(self.http.infer(model, input_tensors(httpclient, inputs)))

    def start(self, model, **inputs):
        """Starts a request over gRPC. Returns (call, future): `call.cancel()` cancels the request."""
        future = concurrent.futures.Future()

        def received(result, error):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(read_response(result))

        return self.grpc.async_infer(model, input_tensors(grpcclient, inputs), received), future

    def all_at_once(self, requests):
        """Sends each (model, inputs) from a separate thread, all at the same moment; returns the responses in order."""
        responses = [None] * len(requests)
        barrier = threading.Barrier(len(requests))

        def send(index):
            model, inputs = requests[index]
            barrier.wait()
            responses[index] = self.start(model, **inputs)[1].result(timeout=TIMEOUT)

        threads = [threading.Thread(target=send, args=(index,)) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None not in responses, "a client got no response"
        return responses

    def load(self, *models):
        """Loads models and checks that each is ready."""
        for model in models:
            self.http.load_model(model)
            assert self.http.is_model_ready(model)

    def load_error(self, model):
        """Checks that the load of a model fails; returns the message."""
        with pytest.raises(InferenceServerException) as caught:
            self.http.load_model(model)
        assert not self.http.is_model_ready(model)
        return caught.value.message()

    def refused(self, model, **inputs):
        """Checks that a request is an invalid argument over gRPC and over HTTP; returns the message."""
        with pytest.raises(InferenceServerException) as over_grpc:
            self.infer(model, **inputs)
        with pytest.raises(InferenceServerException) as over_http:
            self.infer_http(model, **inputs)
        assert over_grpc.value.status() == "StatusCode.INVALID_ARGUMENT", over_grpc.value
        assert over_http.value.status() == "400", over_http.value
        for error in (over_grpc, over_http):
            check_harmless(error.value.message())
        return over_grpc.value.message()

    def counter(self, name, model):
        """Returns the value of a counter of version 1 of a model; 0 before the first event."""
        return self.server.metric(name, model=model, version="1") or 0


def check_harmless(message):
    """Checks that an error contains neither the user's text nor a word that SageMaker maps to 507."""
    assert "zanzibar" not in message.lower(), message
    for word in MEMORY_WORDS:
        assert word not in message, message


def own_group(pid, root):
    """Returns the folder of a process's control group below `root`."""
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (root.name == "memory") == ("memory" in controllers.split(",")) and (
            root / path[1:] / "cgroup.procs"
        ).exists():
            return root / path[1:]
    return root


def control_group(name, limit):
    """Makes a control group with a memory limit; returns its folder, or None where the system refuses it."""
    for folder, file in (GROUPS / "memory" / name, "memory.limit_in_bytes"), (GROUPS / name, "memory.max"):
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            # The group gets the memory that its process has already.
            with contextlib.suppress(OSError):
                (folder / "memory.move_charge_at_immigrate").write_text("3")
            (folder / file).write_text(str(limit))
            return folder
        except OSError:
            folder.rmdir()
    return None


@contextlib.contextmanager
def memory_limit(server, limit):
    """Limits the memory of the server by a control group. Yields whether the system makes one."""
    pid = server.process.pid
    folder = control_group(f"triton-diffusion-test-{pid}", limit)
    if folder is None:
        yield False
        return
    before = own_group(pid, folder.parent)
    (folder / "cgroup.procs").write_text(str(pid))
    try:
        yield True
    finally:
        (before / "cgroup.procs").write_text(str(pid))
        # The kernel moves the threads one after the other.
        wait_for(lambda: not (folder / "cgroup.procs").read_text(), 10, "the group is empty")
        folder.rmdir()


def wait_for(condition, seconds, what):
    """Waits until `condition()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def at_most(seconds):
    """Fails if the body takes longer."""
    started = time.monotonic()
    yield
    taken = time.monotonic() - started
    assert taken < seconds, f"took {taken:.1f} s"

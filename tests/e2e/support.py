"""What the end-to-end tests share: model repositories, requests, and what must hold for every error."""

import base64
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import struct
import threading
import time

import numpy as np
import pytest
import seeded_checkpoints
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from PIL import Image
from tritonclient.utils import InferenceServerException

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Generated before the first test; see conftest.py.
CHECKPOINTS = seeded_checkpoints.OUT
CHECKPOINT = CHECKPOINTS / "sd2_base"
# Height and width of a picture of CHECKPOINT when the request names none: sample_size 8, times 8.
DEFAULT_SIZE = 64
# Seconds after which a request that has no answer fails its test.
TIMEOUT = 120.0

# Words for which SageMaker's front end turns an error into 507 (insufficient storage).
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
# Stands in texts that a test sends; must never come back in an error.
SECRET = "zanzibarOutOfMemory"


def config(parameters=None, dims=None, max_batch_size=8):
    """A config.pbtxt for a CPU instance. With `dims`, inputs and outputs are written out with these dims."""
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
        """Adds a model: `text` is its config.pbtxt (default `config()`), its checkpoint a link. Returns its folder."""
        model = self.folder / name
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(config() if text is None else text)
        if checkpoint is not None:
            (model / "1" / "checkpoint").symlink_to(checkpoint, target_is_directory=True)
        return model

    def add_copy(self, name, text=None):
        """Adds a model whose checkpoint is a copy that a test may damage. Returns the checkpoint's folder."""
        checkpoint = self.add(name, text, checkpoint=None) / "1" / "checkpoint"
        shutil.copytree(CHECKPOINT, checkpoint)
        return checkpoint


@dataclasses.dataclass
class Answer:
    """What came back: pictures[row][image] as encoded bytes, the output's shape, the response parameters."""

    pictures: list
    shape: list
    parameters: dict

    @property
    def picture(self):
        """The only picture of the answer."""
        assert self.shape == [1, 1]
        return self.pictures[0][0]


def opened(picture):
    """The picture decoded by PIL."""
    image = Image.open(io.BytesIO(picture))
    image.load()
    return image


def pixels(picture):
    """The picture's pixels as an int array of height, width, channel."""
    return np.asarray(opened(picture).convert("RGB")).astype(np.int64)


def waves(width, height, phase=0.0):
    """A smooth RGB picture, to be sent."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [np.sin(x * (0.11 + 0.05 * c) + phase) + np.cos(y * (0.13 - 0.03 * c) + c + phase) for c in range(3)]
    return Image.fromarray(((np.stack(channels, axis=-1) + 2) / 4 * 255).round().astype(np.uint8))


def spot(width, height):
    """A grey mask: a white ellipse on black."""
    x, y = np.meshgrid(np.arange(width) / width, np.arange(height) / height)
    return Image.fromarray(((np.hypot((x - 0.55) / 0.3, (y - 0.45) / 0.35) < 1) * 255).astype(np.uint8))


def slope(width, height):
    """A grey depth map."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(((x * 2 + y * 3) % 256).astype(np.uint8))


def file_of(image, kind="PNG", **options):
    """The bytes of a PIL image in a file format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sent(image, kind="PNG", **options):
    """A PIL image, or the bytes of a file, as the text of an input tensor."""
    file = image if isinstance(image, bytes) else file_of(image, kind, **options)
    return base64.b64encode(file).decode()


def text_chunk(picture):
    """The JSON object in a PNG's text chunk `parameters`."""
    return json.loads(opened(picture).text["parameters"])


def column(values):
    """One text (or JSON value) a row, as the [rows, 1] tensor that Triton takes."""
    if not isinstance(values, list):
        values = [values]
    return np.array([[as_bytes(value)] for value in values], dtype=np.object_)


def as_bytes(value):
    if isinstance(value, dict):
        value = json.dumps(value)
    return value.encode() if isinstance(value, str) else value


def _parameter(message):
    return getattr(message, message.WhichOneof("parameter_choice"))


class Client:
    """Requests to one server. An input is a text, bytes, a dict (sent as JSON), a list of them (one a row), or a ready
    array for shapes that are out of the ordinary."""

    def __init__(self, server):
        self.server = server
        self.grpc = grpcclient.InferenceServerClient(server.grpc_address)
        self.http = httpclient.InferenceServerClient(server.http_address, network_timeout=TIMEOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.grpc.close()
        self.http.close()

    @staticmethod
    def _inputs(kind, tensors):
        inputs = []
        for name, value in tensors.items():
            if value is None:
                continue
            array = value if isinstance(value, np.ndarray) else column(value)
            tensor = kind.InferInput(name, list(array.shape), "BYTES")
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        return inputs

    @staticmethod
    def _answer(result, parameters):
        array = result.as_numpy("generated_image")
        rows = array.reshape(array.shape[0], -1)
        return Answer(
            [[base64.b64decode(each, validate=True) for each in row] for row in rows],
            list(array.shape),
            parameters,
        )

    def infer(self, model, **tensors):
        """One request over gRPC."""
        result = self.grpc.infer(model, self._inputs(grpcclient, tensors), client_timeout=TIMEOUT)
        return self._grpc_answer(result)

    def _grpc_answer(self, result):
        parameters = {name: _parameter(value) for name, value in result.get_response().parameters.items()}
        return self._answer(result, parameters)

    def infer_http(self, model, **tensors):
        """One request over HTTP."""
        result = self.http.infer(model, self._inputs(httpclient, tensors))
        return self._answer(result, result.get_response().get("parameters", {}))

    def start(self, model, **tensors):
        """Starts a request over gRPC. Returns (call, future): `call.cancel()` cancels it, the future has the answer."""
        future = concurrent.futures.Future()

        def received(result, error):
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(self._grpc_answer(result))

        return self.grpc.async_infer(model, self._inputs(grpcclient, tensors), received), future

    def all_at_once(self, requests):
        """Sends each (model, inputs) from a thread of its own, all at the same moment; returns the answers in order."""
        answers = [None] * len(requests)
        barrier = threading.Barrier(len(requests))

        def send(index):
            model, tensors = requests[index]
            barrier.wait()
            answers[index] = self.start(model, **tensors)[1].result(timeout=TIMEOUT)

        threads = [threading.Thread(target=send, args=(index,)) for index in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None not in answers, "a client got no answer"
        return answers

    def load(self, *models):
        """Loads models, each of which must load."""
        for model in models:
            self.http.load_model(model)
            assert self.http.is_model_ready(model)

    def load_error(self, model):
        """The message with which a load fails."""
        with pytest.raises(InferenceServerException) as caught:
            self.http.load_model(model)
        assert not self.http.is_model_ready(model)
        return caught.value.message()

    def refused(self, model, **tensors):
        """The message of a request that is refused as an invalid argument, over gRPC and over HTTP alike."""
        with pytest.raises(InferenceServerException) as over_grpc:
            self.infer(model, **tensors)
        with pytest.raises(InferenceServerException) as over_http:
            self.infer_http(model, **tensors)
        assert over_grpc.value.status() == "StatusCode.INVALID_ARGUMENT", over_grpc.value
        assert over_http.value.status() == "400", over_http.value
        for error in (over_grpc, over_http):
            check_harmless(error.value.message())
        return over_grpc.value.message()

    def counter(self, name, model):
        """The value of a counter of the first version of a model; 0 before its first event."""
        return self.server.metric(name, model=model, version="1") or 0


def check_harmless(message):
    """No error holds the user's text, or a word that SageMaker takes for a lack of memory."""
    assert "zanzibar" not in message.lower(), message
    for word in MEMORY_WORDS:
        assert word not in message, message


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


def read_safetensors(path):
    """The header (name -> entry) and the data of a safetensors file."""
    content = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_safetensors(path, header, data):
    """Writes the tensors that `header` names, taken from `data`, as a well-formed safetensors file."""
    entries, parts, at = {}, [], 0
    for name, entry in header.items():
        if name == "__metadata__":
            entries[name] = entry
            continue
        begin, end = entry["data_offsets"]
        parts.append(data[begin:end])
        entries[name] = {**entry, "data_offsets": [at, at + end - begin]}
        at += end - begin
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))

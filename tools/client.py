"""Builds requests for Triton's clients and reads their responses.

The demo, the benches and the end-to-end tests share it; `tritonclient.grpc` and `tritonclient.http` both work. The
programs in examples/ do without it: each of them is complete in itself.
"""

import base64
import dataclasses
import io
import json
import queue

import numpy as np
import tritonclient.grpc as grpcclient


@dataclasses.dataclass
class Response:
    """A response: `images[element][n]` as encoded bytes, the shape of the output, the response parameters.

    The times of the phases, which are never the same twice, are apart from the other parameters.
    """

    images: list
    shape: list
    parameters: dict
    timings_ms: object = dataclasses.field(default=None, compare=False)

    @property
    def image(self):
        """The only image of a response that has one."""
        assert self.shape == [1, 1]
        return self.images[0][0]


def image_file(image, format="PNG", **options):
    """Encodes a PIL image; returns the bytes of the file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def to_base64(image, format="PNG", **options):
    """Encodes a PIL image, or the bytes of an image file, as the text that an input tensor takes."""
    file = image if isinstance(image, bytes) else image_file(image, format, **options)
    return base64.b64encode(file).decode()


def bytes_array(values):
    """Makes the array [batch, 1] of an input, from one value for each batch element or from a single value.

    A value is a text, bytes, or a dictionary, which is sent as JSON.
    """
    if not isinstance(values, list):
        values = [values]
    return np.array([[_encode(value)] for value in values], dtype=np.object_)


def _encode(value):
    if isinstance(value, dict):
        value = json.dumps(value)
    return value.encode() if isinstance(value, str) else value


def input_tensors(protocol, inputs):
    """Makes the BYTES tensors of a request.

    `protocol` is the module `tritonclient.grpc` or `tritonclient.http`. `inputs` maps names to values as `bytes_array`
    takes them, to arrays, or to None, which leaves the input out.
    """
    tensors = []
    for name, value in inputs.items():
        if value is None:
            continue
        array = value if isinstance(value, np.ndarray) else bytes_array(value)
        tensor = protocol.InferInput(name, list(array.shape), "BYTES")
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    return tensors


def read_response(result):
    """Reads the `InferResult` of either client into a `Response`."""
    array = result.as_numpy("generated_image")
    elements = array.reshape(array.shape[0], -1)
    images = [[base64.b64decode(text, validate=True) for text in element] for element in elements]
    parameters = dict(_parameters(result.get_response()))
    timings = json.loads(parameters.pop("timings_ms", "null"))
    return Response(images, list(array.shape), parameters, timings)


def stream(address, model, inputs, timeout=120):
    """Sends a request over a gRPC stream. Yields the `InferResult` of each response; the last one is the final one.

    address: the gRPC address of the server.
    inputs: as `input_tensors` takes them.
    timeout: seconds that one response may take.
    """
    received = queue.Queue()
    with grpcclient.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: received.put((result, error)))
        client.async_stream_infer(model, input_tensors(grpcclient, inputs))
        while True:
            result, error = received.get(timeout=timeout)
            if error is not None:
                raise error
            yield result
            # Only responses before the final one tell a step.
            if parameter(result, "step") is None:
                return


def parameter(result, name):
    """Returns a parameter of a response; None if it has none of that name."""
    return dict(_parameters(result.get_response())).get(name)


def _parameters(response):
    if isinstance(response, dict):  # over HTTP
        return response.get("parameters", {})
    return {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in response.parameters.items()}

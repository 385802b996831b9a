"""The bodies of `invoke` equal those of Triton's client, and `invoke` reads responses in both formats."""

import base64
import json

import pytest

import bodies
from calls import DeployError

TEXTS = {"prompt": "a cat — in Überlingen", "negative_prompt": "", "gen_args": '{"seed": 3}'}


def test_json_body_is_that_of_the_notebook():
    body, kind = bodies.json_body(TEXTS)
    assert kind == "application/json"
    assert json.loads(body) == {
        "inputs": [{"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]} for name, text in TEXTS.items()]
    }


def test_binary_body_is_that_of_tritonclient():
    httpclient = pytest.importorskip("tritonclient.http")
    import numpy as np

    inputs = []
    for name, text in TEXTS.items():
        tensor = httpclient.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        inputs.append(tensor)
    outputs = [httpclient.InferRequestedOutput("generated_image", binary_data=True)]
    theirs, their_size = httpclient.InferenceServerClient.generate_request_body(inputs, outputs)
    ours, kind = bodies.binary_body(TEXTS)
    our_size = int(kind.removeprefix("application/vnd.sagemaker-triton.binary+json;json-header-size="))
    assert json.loads(ours[:our_size]) == json.loads(theirs[:their_size])
    assert ours[our_size:] == theirs[their_size:]


def binary_response(tensors, **parameters):
    """Returns a response in the binary format; `tensors` maps names to elements."""
    parts = [b"".join(len(each).to_bytes(4, "little") + each for each in elements) for elements in tensors.values()]
    outputs = [
        {"name": name, "parameters": {"binary_data_size": len(part)}} for name, part in zip(tensors, parts, strict=True)
    ]
    header = json.dumps({"outputs": outputs, "parameters": parameters}).encode()
    return header + b"".join(parts), f"{bodies.BINARY}{len(header)}"


def test_binary_response():
    images = [b"first", b"second image"]
    encoded = [base64.b64encode(each) for each in images]
    body, kind = binary_response({"other": [b"x"], "generated_image": encoded}, seed=3)
    assert bodies.images_of(body, kind) == (images, {"seed": 3})


def test_json_response():
    body = json.dumps({"outputs": [{"name": "generated_image", "data": [base64.b64encode(b"first").decode()]}]})
    assert bodies.images_of(body.encode(), "application/json") == ([b"first"], {})


def test_truncated_binary_response():
    body, kind = binary_response({"generated_image": [base64.b64encode(b"an image")]})
    for length in range(len(body)):
        with pytest.raises(DeployError):
            bodies.images_of(body[:length], kind)
    with pytest.raises(DeployError):
        bodies.images_of(body, bodies.BINARY + "x")

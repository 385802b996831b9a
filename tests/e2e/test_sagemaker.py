"""The SageMaker front end: the routes of a multi-model endpoint, and the requests that they accept."""

import base64
import json

import pytest

import notebook
from notebook import body_of, image_of
from support import SECRET, check_harmless, open_image

# The front end takes an error with "OOM" in it for a lack of memory.
TARGET = "BLOOM.tar.gz"
HASH = "d41d8cd98f00b204e9800998ecf8427e"


def send(method, url, body=None, content_type="application/octet-stream"):
    return notebook.send(method, url, body, content_type, target=TARGET)


def unpacked(folder):
    """Writes an unpacked model archive, whose folder has another name than the model."""
    return notebook.unpacked(folder / HASH / "model", "sd_base")


@pytest.fixture(scope="module")
def loaded(server, tmp_path_factory):
    """Loads the model by SageMaker's route; yields the URL of its resource."""
    folder = unpacked(tmp_path_factory.mktemp("models"))
    status, _, body = send("POST", f"{server.sagemaker_url}/models", {"model_name": HASH, "url": str(folder)})
    if status == 400 and b"/opt/ml/models" in body:
        pytest.skip("this tritonserver loads from /opt/ml/models only")
    assert status == 200, body
    yield f"{server.sagemaker_url}/models/{HASH}"
    status, _, body = send("DELETE", f"{server.sagemaker_url}/models/{HASH}")
    assert status == 200, body
    assert send("GET", f"{server.sagemaker_url}/models/{HASH}")[0] == 404
    assert send("POST", f"{server.sagemaker_url}/models/{HASH}/invoke", notebook.sd_base())[0] == 404


def test_notebook_request(loaded):
    status, headers, body = send("POST", f"{loaded}/invoke", notebook.sd_base())
    assert status == 200, body
    assert headers["Content-Type"] == "application/json"
    reply = json.loads(body)
    assert reply["model_name"] == TARGET
    assert reply["outputs"][0]["name"] == "generated_image"
    assert image_of(body).size == (64, 64)


def test_prompt_alone(loaded):
    status, _, body = send("POST", f"{loaded}/invoke", body_of(prompt="a cat"), "application/json")
    assert status == 200, body
    assert image_of(body).size == (64, 64)


def test_binary_body(loaded):
    """Sends application/vnd.sagemaker-triton.binary+json: a JSON header, then the tensors."""
    texts = {"prompt": b"a cat", "gen_args": b'{"num_inference_steps": 2, "seed": 3}'}
    header = {
        "inputs": [
            {
                "name": name,
                "shape": [1, 1],
                "datatype": "BYTES",
                "parameters": {"binary_data_size": len(text) + 4},
            }
            for name, text in texts.items()
        ],
        "outputs": [{"name": "generated_image", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(header).encode()
    body = head + b"".join(len(text).to_bytes(4, "little") + text for text in texts.values())
    kind = "application/vnd.sagemaker-triton.binary+json;json-header-size="
    status, headers, reply = send("POST", f"{loaded}/invoke", body, f"{kind}{len(head)}")
    assert status == 200, reply
    assert headers["Content-Type"].startswith(kind)
    tensors = reply[int(headers["Content-Type"].removeprefix(kind)) :]
    assert int.from_bytes(tensors[:4], "little") == len(tensors) - 4
    assert open_image(base64.b64decode(tensors[4:])).size == (64, 64)


@pytest.mark.parametrize(
    "body",
    [
        body_of(prompt=SECRET, gen_args=json.dumps({"num_inference_steps": "CUDA out of memory"})),
        body_of(prompt=SECRET, gen_args=json.dumps({"OOM": 1})),
        body_of(prompt=SECRET, gen_args=f"{SECRET}: No space left on device"),
        body_of(prompt=SECRET, gen_args=json.dumps({"scheduler": "MemoryError"})),
    ],
)
def test_user_error_is_400_whatever_words_it_contains(loaded, body):
    status, _, reply = send("POST", f"{loaded}/invoke", body)
    assert status == 400, reply
    check_harmless(json.loads(reply)["error"])


def test_loading_twice_is_a_conflict(server, loaded, tmp_path):
    folder = unpacked(tmp_path)
    status, _, body = send("POST", f"{server.sagemaker_url}/models", {"model_name": HASH, "url": str(folder)})
    assert status == 409, body


def test_ping(server):
    assert send("GET", f"{server.sagemaker_url}/ping")[0] == 200

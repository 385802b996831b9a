"""The SageMaker front end: a multi-model endpoint's routes, and the request bodies of the public example notebook."""

import base64
import json
import urllib.error
import urllib.request

import pytest
from support import CHECKPOINT, SECRET, check_harmless, opened

# The config.pbtxt of the public example, for this backend and a CPU.
CONFIG = """\
name: "sd_base"
backend: "diffusion"
max_batch_size: 8
input [
  { name: "prompt" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "negative_prompt" data_type: TYPE_STRING dims: [ -1 ] optional: true },
  { name: "gen_args" data_type: TYPE_STRING dims: [ -1 ] optional: true }
]
output [{ name: "generated_image" data_type: TYPE_STRING dims: [ -1 ] }]
instance_group [{ kind: KIND_CPU }]
"""
TARGET = "sd_base.tar.gz"
HASH = "d41d8cd98f00b204e9800998ecf8427e"


def notebook_body(**texts):
    return {
        "inputs": [
            {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]} for name, text in texts.items()
        ]
    }


SD_BASE = notebook_body(
    prompt="Infinity pool on top of a high rise overlooking Central Park",
    negative_prompt="blur, signature, low detail, low quality",
    gen_args=json.dumps(dict(num_inference_steps=50, guidance_scale=8)),
)


def send(method, url, body=None, content_type="application/octet-stream"):
    """Returns (status, headers, body) as SageMaker's router would see them."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, method=method, data=data)
    request.add_header("X-Amzn-SageMaker-Target-Model", TARGET)
    if data is not None:
        request.add_header("Content-Type", content_type)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def unpacked(folder):
    """An unpacked model archive; the model's folder name is not the name that it is served under."""
    model = folder / HASH / "model" / "sd_base"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text(CONFIG)
    (model / "1" / "checkpoint").symlink_to(CHECKPOINT, target_is_directory=True)
    return folder / HASH / "model"


@pytest.fixture(scope="module")
def loaded(server, tmp_path_factory):
    """The model, loaded by the route that SageMaker uses; gives the URL of its resource."""
    folder = unpacked(tmp_path_factory.mktemp("models"))
    status, _, body = send("POST", f"{server.sagemaker_url}/models", {"model_name": HASH, "url": str(folder)})
    if status == 400 and b"/opt/ml/models" in body:
        pytest.skip("this tritonserver loads from /opt/ml/models only")
    assert status == 200, body
    yield f"{server.sagemaker_url}/models/{HASH}"
    status, _, body = send("DELETE", f"{server.sagemaker_url}/models/{HASH}")
    assert status == 200, body
    assert send("GET", f"{server.sagemaker_url}/models/{HASH}")[0] == 404
    assert send("POST", f"{server.sagemaker_url}/models/{HASH}/invoke", SD_BASE)[0] == 404


def picture_of(body):
    """The first picture of a JSON reply, opened as the notebook does it."""
    return opened(base64.b64decode(json.loads(body)["outputs"][0]["data"][0]))


def test_notebook_request(loaded):
    status, headers, body = send("POST", f"{loaded}/invoke", SD_BASE)
    assert status == 200, body
    assert headers["Content-Type"] == "application/json"
    reply = json.loads(body)
    assert reply["model_name"] == TARGET
    assert reply["outputs"][0]["name"] == "generated_image"
    assert picture_of(body).size == (64, 64)


def test_notebook_request_over_plain_http(server, client, repository):
    model = repository.add("sd_base", CONFIG)
    assert model.name == "sd_base"
    client.load("sd_base")
    status, _, body = send("POST", f"http://{server.http_address}/v2/models/sd_base/infer", SD_BASE)
    assert status == 200, body
    assert picture_of(body).size == (64, 64)


def test_prompt_alone(loaded):
    status, _, body = send("POST", f"{loaded}/invoke", notebook_body(prompt="a cat"), "application/json")
    assert status == 200, body
    assert picture_of(body).size == (64, 64)


def test_binary_body(loaded):
    """application/vnd.sagemaker-triton.binary+json: a JSON header, then the tensors."""
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
    assert opened(base64.b64decode(tensors[4:])).size == (64, 64)


@pytest.mark.parametrize(
    "body",
    [
        notebook_body(prompt=SECRET, gen_args=json.dumps({"num_inference_steps": "CUDA out of memory"})),
        notebook_body(prompt=SECRET, gen_args=json.dumps({"OOM": 1})),
        notebook_body(prompt=SECRET, gen_args=f"{SECRET}: No space left on device"),
        notebook_body(prompt=SECRET, gen_args=json.dumps({"scheduler": "MemoryError"})),
    ],
)
def test_an_error_is_a_400_whatever_words_the_user_wrote(loaded, body):
    status, _, reply = send("POST", f"{loaded}/invoke", body)
    assert status == 400, reply
    check_harmless(json.loads(reply)["error"])


def test_loading_twice_is_a_conflict(server, loaded, tmp_path):
    folder = unpacked(tmp_path)
    status, _, body = send("POST", f"{server.sagemaker_url}/models", {"model_name": HASH, "url": str(folder)})
    assert status == 409, body


def test_ping(server):
    assert send("GET", f"{server.sagemaker_url}/ping")[0] == 200

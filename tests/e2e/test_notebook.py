"""The five requests of the public SageMaker notebook in order; each image is the input of the next request."""

import base64
import json

import numpy as np
import pytest

import notebook
from support import pixels, spot


@pytest.fixture(scope="module")
def over_http(server, client, repository):
    """Returns a function that sends a body over Triton's HTTP routes."""
    for model in notebook.MODELS:
        notebook.unpacked(repository.folder, model)
    client.load(*notebook.MODELS)

    def invoke(model, body):
        status, _, reply = notebook.send("POST", f"http://{server.http_address}/v2/models/{model}/infer", body)
        assert status == 200, reply
        return reply

    yield invoke
    for model in notebook.MODELS:
        client.http.unload_model(model)


@pytest.fixture(scope="module")
def over_sagemaker(server, tmp_path_factory):
    """Returns a function that sends a body over SageMaker's multi-model routes, which also loaded the models."""
    folder = tmp_path_factory.mktemp("models")
    names = {model: f"{number:032x}" for number, model in enumerate(notebook.MODELS, 1)}
    for model, name in names.items():
        notebook.unpacked(folder / name / "model", model)
        wanted = {"model_name": name, "url": str(folder / name / "model")}
        status, _, reply = notebook.send("POST", f"{server.sagemaker_url}/models", wanted, target=f"{model}.tar.gz")
        if status == 400 and b"/opt/ml/models" in reply:
            pytest.skip("this tritonserver loads from /opt/ml/models only")
        assert status == 200, reply

    def invoke(model, body):
        target = f"{model}.tar.gz"
        url = f"{server.sagemaker_url}/models/{names[model]}/invoke"
        status, _, reply = notebook.send("POST", url, body, target=target)
        assert status == 200, reply
        assert json.loads(reply)["model_name"] == target
        return reply

    yield invoke
    for model, name in names.items():
        # The front end waits for the model in this header to unload; SageMaker's router sends the header.
        target = f"{model}.tar.gz"
        assert notebook.send("DELETE", f"{server.sagemaker_url}/models/{name}", target=target)[0] == 200


@pytest.mark.parametrize("route", ["over_http", "over_sagemaker"])
def test_the_five_requests(route, request):
    invoke = request.getfixturevalue(route)

    def ask(model, body, steps):
        reply = invoke(model, body)
        outputs = json.loads(reply)["outputs"]
        assert [(each["name"], each["shape"]) for each in outputs] == [("generated_image", [1, 1])]
        # PNDM calls the UNet once more than it has steps.
        assert json.loads(reply)["parameters"]["steps_run"] in (steps, steps + 1)
        image = notebook.image_of(reply)
        # The tiny checkpoints generate 64 x 64 pixels where the notebook gets 512 x 512.
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert np.asarray(image).std() > 1, "one color all over"
        return image

    image = ask("sd_base", notebook.sd_base(), 50)
    image = ask("sd_depth", notebook.sd_depth(image), 40)
    image = ask("sd_depth", notebook.sd_depth_again(image), 40)

    body = notebook.sd_inpaint(image, spot(64, 64))
    painted = ask("sd_inpaint", body, 50)
    received = {
        each["name"]: pixels(base64.b64decode(each["data"][0])) for each in body["inputs"] if "image" in each["name"]
    }
    kept = received["mask_image"][..., 0] < 128
    assert len(np.unique(received["mask_image"])) > 2, "the mask was not sent as JPEG"
    assert 0.2 < kept.mean() < 0.9
    assert np.array_equal(np.asarray(painted)[kept], received["image"][kept]), "the kept part was changed"
    assert not np.array_equal(np.asarray(painted)[~kept], received["image"][~kept])

    ask("sd_upscale", notebook.sd_upscale(painted), 75)

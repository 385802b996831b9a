"""Configurations, request bodies and client of the public SageMaker example notebook.

Source: aws/amazon-sagemaker-examples, `workshops/lab2-stable-diffusion`. The differences: the backend, the CPU, the
folder of the Python environment (which nothing reads), and the name in `sd_upscale/config.pbtxt`, where the notebook
has `sd_depth`.
"""

import base64
import io
import json
import urllib.error
import urllib.request

from PIL import Image

from support import CHECKPOINTS

# Model -> the test checkpoint, and the inputs in order: name -> whether it is optional.
MODELS = {
    "sd_base": ("sd2_base", {"prompt": False, "negative_prompt": True, "gen_args": True}),
    "sd_depth": ("sd2_depth", {"prompt": False, "negative_prompt": True, "image": False, "gen_args": True}),
    "sd_inpaint": (
        "sd2_inpaint",
        {"prompt": False, "negative_prompt": True, "image": False, "mask_image": False, "gen_args": True},
    ),
    "sd_upscale": ("x4_upscaler", {"prompt": False, "negative_prompt": True, "image": False, "gen_args": True}),
}


def config(model):
    """Returns the notebook's config.pbtxt of a model, for this backend and a CPU."""
    inputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_STRING dims: [ -1 ]{" optional: true" if optional else ""} }}'
        for name, optional in MODELS[model][1].items()
    )
    return f"""\
name: "{model}"
backend: "diffusion"
max_batch_size: 8
input [
{inputs}
]
output [
  {{ name: "generated_image" data_type: TYPE_STRING dims: [ -1 ] }}
]
instance_group [ {{ kind: KIND_CPU }} ]
parameters: {{ key: "EXECUTION_ENV_PATH" value: {{ string_value: "conda/sd_env.tar.gz" }} }}
"""


def unpacked(folder, model):
    """Writes an unpacked model archive, `<model>/config.pbtxt` and `<model>/1/checkpoint`. Returns `folder`."""
    (folder / model / "1").mkdir(parents=True)
    (folder / model / "config.pbtxt").write_text(config(model))
    checkpoint = CHECKPOINTS / MODELS[model][0]
    (folder / model / "1" / "checkpoint").symlink_to(checkpoint, target_is_directory=True)
    return folder


def body_of(**texts):
    """Returns a request body in the notebook's form."""
    return {
        "inputs": [{"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]} for name, text in texts.items()]
    }


POOL = "Infinity pool on top of a high rise overlooking Central Park"
BLUR = "blur, signature, low detail, low quality"


def sd_base():
    return body_of(
        prompt=POOL,
        negative_prompt=BLUR,
        gen_args=json.dumps(dict(num_inference_steps=50, guidance_scale=8)),
    )


def sd_depth(image):
    return body_of(
        prompt="highly detailed oil painting of an inifinity pool overlooking central park",
        image=encode_image(image),
        gen_args=json.dumps(dict(num_inference_steps=50, strength=0.8)),
    )


def sd_depth_again(image):
    return body_of(
        prompt="Infinity pool perched on a cliff overlooking Yellowstone National Park ",
        image=encode_image(image),
        gen_args=json.dumps(dict(num_inference_steps=50, strength=0.8)),
    )


def sd_inpaint(image, mask_image):
    return body_of(
        prompt="building, facade, paint, windows",
        negative_prompt="tree, obstruction, sky, clouds",
        image=encode_image(image),
        mask_image=encode_image(mask_image),
        gen_args=json.dumps(dict(num_inference_steps=50, guidance_scale=10)),
    )


def sd_upscale(image):
    width, height = image.size
    return body_of(
        prompt=POOL,
        negative_prompt=BLUR,
        image=encode_image(image.resize((width // 4, height // 4))),
    )


def encode_image(image):
    """Encodes an image or a mask as the notebook's client does, as JPEG."""
    file = io.BytesIO()
    image.save(file, format="JPEG")
    return base64.b64encode(file.getvalue()).decode("utf8")


def image_of(body):
    """Opens the first image of a JSON response, as the notebook does."""
    return Image.open(io.BytesIO(base64.b64decode(json.loads(body)["outputs"][0]["data"][0])))


def send(method, url, body=None, content_type="application/octet-stream", target=None):
    """Sends a request as SageMaker's router does; `target` is the TargetModel. Returns (status, headers, body)."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, method=method, data=data)
    if target is not None:
        request.add_header("X-Amzn-SageMaker-Target-Model", target)
    if data is not None:
        request.add_header("Content-Type", content_type)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()

"""Sends a prompt and an image to a running server and writes the generated image to a file.

    .venv/bin/python examples/from_image.py image "an oil painting" --image lighthouse.png --strength 0.6
    .venv/bin/python examples/from_image.py depth "a lighthouse of ice" --image lighthouse.png
    .venv/bin/python examples/from_image.py inpaint "a sailing ship" --image lighthouse.png --mask-image mask.png
    .venv/bin/python examples/from_image.py upscale "a lighthouse at dusk" --image small.png --noise-level 20

Images may be PNG, JPEG, WebP, BMP, GIF or TIFF. The model repaints the white part of a mask. A depth map has one
channel; white is near.
"""

import argparse
import base64
import json
import pathlib

import numpy as np
import tritonclient.grpc as grpcclient

# The default models.
MODELS = {"image": "sd_base", "depth": "sd_depth", "inpaint": "sd_inpaint", "upscale": "sd_upscale"}
IMAGES = ("image", "mask_image", "depth_map")


def parse():
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("prompt")
    common.add_argument("--negative-prompt", default="")
    common.add_argument("--image", type=pathlib.Path, required=True)
    common.add_argument("--model", help="default: " + ", ".join(MODELS.values()))
    common.add_argument("--url", default="localhost:8001", help="host:port of the server's gRPC")
    common.add_argument("--steps", type=int, dest="num_inference_steps")
    common.add_argument("--guidance-scale", type=float)
    common.add_argument("--seed", type=int)
    common.add_argument("--scheduler", help="a diffusers class, such as DPMSolverMultistepScheduler")
    common.add_argument("--out", type=pathlib.Path, default=pathlib.Path("generated.png"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = {name: commands.add_parser(name, parents=[common]) for name in MODELS}
    for name in ("image", "depth", "inpaint"):
        command[name].add_argument("--strength", type=float, help="share of the denoising steps, 0 to 1")
    command["depth"].add_argument("--depth-map", type=pathlib.Path)
    command["inpaint"].add_argument("--mask-image", type=pathlib.Path, required=True)
    command["upscale"].add_argument("--noise-level", type=int)
    return parser.parse_args()


def main():
    arguments = vars(parse())
    # The server has a default for every argument that is missing.
    names = ("num_inference_steps", "guidance_scale", "seed", "scheduler", "strength", "noise_level")
    gen_args = {name: arguments[name] for name in names if arguments.get(name) is not None}
    values = {
        "prompt": arguments["prompt"].encode(),
        "negative_prompt": arguments["negative_prompt"].encode(),
        "gen_args": json.dumps(gen_args).encode(),
    }
    for name in IMAGES:
        if arguments.get(name) is not None:
            values[name] = base64.b64encode(arguments[name].read_bytes())

    # One batch element, so every tensor has the shape [1, 1]. A larger batch generates more images with one request.
    inputs = []
    for name, value in values.items():
        tensor = grpcclient.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
        inputs.append(tensor)
    with grpcclient.InferenceServerClient(arguments["url"]) as client:
        result = client.infer(arguments["model"] or MODELS[arguments["command"]], inputs)

    arguments["out"].write_bytes(base64.b64decode(result.as_numpy("generated_image")[0, 0]))
    print(f"wrote {arguments['out']}, seed {result.get_response().parameters['seed'].int64_param}")


if __name__ == "__main__":
    main()

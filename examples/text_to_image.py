"""Sends a prompt to a running server, over gRPC or HTTP, and writes the image to a file.

Examples:

    .venv/bin/python examples/text_to_image.py "a lighthouse at dusk" --out lighthouse.png
    .venv/bin/python examples/text_to_image.py "a lighthouse at dusk" --protocol http --url localhost:8000 --steps 25
"""

import argparse
import base64
import json
import pathlib

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--model", default="sd_base")
    parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    parser.add_argument("--url", help="host:port (default localhost:8001 for gRPC, localhost:8000 for HTTP)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance-scale", type=float, default=7.5)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("generated.png"))
    arguments = parser.parse_args()

    if arguments.protocol == "grpc":
        import tritonclient.grpc as protocol
    else:
        import tritonclient.http as protocol
    url = arguments.url or {"grpc": "localhost:8001", "http": "localhost:8000"}[arguments.protocol]

    gen_args = {"num_inference_steps": arguments.steps, "guidance_scale": arguments.guidance_scale}
    if arguments.seed is not None:
        gen_args["seed"] = arguments.seed
    texts = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "gen_args": json.dumps(gen_args),
    }

    # One batch element, so every tensor has the shape [1, 1]. A larger batch generates more images with one request.
    inputs = []
    for name, text in texts.items():
        tensor = protocol.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        inputs.append(tensor)
    with protocol.InferenceServerClient(url) as client:
        result = client.infer(arguments.model, inputs)

    arguments.out.write_bytes(base64.b64decode(result.as_numpy("generated_image")[0, 0]))
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()

"""Many requests at once from one asyncio program, one of which is cancelled on its way.

    .venv/bin/python examples/cancel_asyncio.py --prompts "a red circle" "a blue star" --cancel "a green square"

A cancelled request stops at its next step and leaves the steps of the others to the others.
"""

import argparse
import asyncio
import base64
import json
import pathlib
import time

import numpy as np
import tritonclient.grpc.aio as grpcclient


def inputs(prompt, gen_args):
    """One row: every tensor has the shape [1, 1]."""
    tensors = []
    for name, text in (("prompt", prompt), ("gen_args", json.dumps(gen_args))):
        tensor = grpcclient.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        tensors.append(tensor)
    return tensors


async def picture(client, model, prompt, steps, file):
    """Asks for a picture and writes it to `file`."""
    started = time.monotonic()
    result = await client.infer(model, inputs(prompt, {"num_inference_steps": steps, "seed": 7}))
    file.write_bytes(base64.b64decode(result.as_numpy("generated_image")[0, 0]))
    print(f"{file} after {time.monotonic() - started:.1f} s", flush=True)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--cancel", help="a prompt whose request is cancelled after --after seconds")
    parser.add_argument("--after", type=float, default=1.0)
    parser.add_argument("--model", default="sd_base")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--url", default="localhost:8001", help="host:port of the server's gRPC")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder for picture-1.png, ...")
    arguments = parser.parse_args()

    async with grpcclient.InferenceServerClient(arguments.url) as client:
        asked = [
            asyncio.create_task(
                picture(client, arguments.model, prompt, arguments.steps, arguments.out / f"picture-{n}.png")
            )
            for n, prompt in enumerate(arguments.prompts, 1)
        ]
        if arguments.cancel is not None:
            # So many steps that it would be the last to end.
            gone = asyncio.create_task(
                picture(
                    client, arguments.model, arguments.cancel, 10 * arguments.steps, arguments.out / "cancelled.png"
                )
            )
            await asyncio.sleep(arguments.after)
            gone.cancel()
            try:
                await gone
            except asyncio.CancelledError:
                print(f"cancelled after {arguments.after:.1f} s", flush=True)
        await asyncio.gather(*asked)


if __name__ == "__main__":
    asyncio.run(main())

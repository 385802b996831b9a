"""Sends several requests at once from one asyncio program and cancels one of them.

    .venv/bin/python examples/cancel_asyncio.py --prompts "a red circle" "a blue star" --cancel "a green square"

A cancelled request stops after its current step; the other requests continue.
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
    """Makes the input tensors of one batch element, each of shape [1, 1]."""
    tensors = []
    for name, text in (("prompt", prompt), ("gen_args", json.dumps(gen_args))):
        tensor = grpcclient.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
        tensors.append(tensor)
    return tensors


async def generate(client, model, prompt, steps, file):
    """Generates an image and writes it to `file`."""
    started = time.monotonic()
    result = await client.infer(model, inputs(prompt, {"num_inference_steps": steps, "seed": 7}))
    file.write_bytes(base64.b64decode(result.as_numpy("generated_image")[0, 0]))
    print(f"{file} after {time.monotonic() - started:.1f} s", flush=True)


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", nargs="+", required=True)
    parser.add_argument("--cancel", help="a prompt whose request is cancelled")
    parser.add_argument("--after", type=float, default=1.0, help="seconds before the cancellation")
    parser.add_argument("--model", default="sd_base")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--url", default="localhost:8001", help="host:port of the server's gRPC")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder for image-1.png, ...")
    arguments = parser.parse_args()

    async with grpcclient.InferenceServerClient(arguments.url) as client:
        tasks = [
            asyncio.create_task(
                generate(client, arguments.model, prompt, arguments.steps, arguments.out / f"image-{n}.png")
            )
            for n, prompt in enumerate(arguments.prompts, 1)
        ]
        if arguments.cancel is not None:
            # With this many steps, the request would finish last.
            cancelled = asyncio.create_task(
                generate(
                    client, arguments.model, arguments.cancel, 10 * arguments.steps, arguments.out / "cancelled.png"
                )
            )
            await asyncio.sleep(arguments.after)
            cancelled.cancel()
            try:
                await cancelled
            except asyncio.CancelledError:
                print(f"cancelled after {arguments.after:.1f} s", flush=True)
        await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main())

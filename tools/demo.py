"""`make demo`: a model repository, a server, a prompt, a picture.

The checkpoint is the tiny one of the tests, with random weights: the whole way is real, the picture is texture.
"""

import argparse
import base64
import pathlib
import shutil
import sys
import threading
import time

import numpy as np
import tritonclient.grpc as grpcclient

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from server import ROOT, TritonServer  # noqa: E402

MODEL = "sd_base"
CONFIG = """\
backend: "diffusion"
max_batch_size: 8
instance_group [{ kind: KIND_CPU }]
"""


def make_repository(folder, checkpoint):
    """Writes a model repository with one model, whose checkpoint is a link to `checkpoint`."""
    if folder.exists():
        shutil.rmtree(folder)
    version = folder / MODEL / "1"
    version.mkdir(parents=True)
    (folder / MODEL / "config.pbtxt").write_text(CONFIG)
    (version / "checkpoint").symlink_to(checkpoint, target_is_directory=True)


def string_input(name, text):
    """A request input that holds one text, for a batch of one row."""
    tensor = grpcclient.InferInput(name, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    return tensor


def generate(server, prompt, gen_args):
    """Sends one request over gRPC and prints how far it is, which the metrics endpoint tells; returns the result."""
    done = threading.Event()
    answer = {}

    def received(result, error):
        answer["result"], answer["error"] = result, error
        done.set()

    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        client.async_infer(
            MODEL,
            [string_input("prompt", prompt), string_input("gen_args", gen_args)],
            received,
        )
        last = None
        while not done.wait(0.1):
            calls = server.metric("diffusion_unet_calls_total", model=MODEL)
            if calls is not None and calls != last:
                print(f"  {calls:.0f} UNet calls", flush=True)
                last = calls
    if answer["error"] is not None:
        raise answer["error"]
    return answer["result"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="Infinity pool on top of a high rise overlooking Central Park")
    parser.add_argument(
        "--gen-args",
        default='{"num_inference_steps": 25, "guidance_scale": 8, "height": 256, "width": 256, "seed": 7}',
    )
    parser.add_argument("--checkpoint", type=pathlib.Path, default=ROOT / "tests" / "checkpoints" / "sd2_base")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "demo.png")
    arguments = parser.parse_args()

    work = ROOT / "target" / "demo"
    make_repository(work / "model_repository", arguments.checkpoint.resolve())
    print("starting tritonserver ...", flush=True)
    started = time.monotonic()
    with TritonServer(work / "model_repository", work / "server.log", models=[MODEL]) as server:
        print(f"ready after {time.monotonic() - started:.1f} s, with the model {MODEL} loaded", flush=True)
        print(f"prompt: {arguments.prompt}\ngen_args: {arguments.gen_args}", flush=True)
        started = time.monotonic()
        result = generate(server, arguments.prompt, arguments.gen_args)
        seconds = time.monotonic() - started

    picture = base64.b64decode(result.as_numpy("generated_image").reshape(-1)[0])
    arguments.out.write_bytes(picture)
    parameters = result.get_response().parameters
    print(f"{parameters['steps_run'].int64_param} steps in {seconds:.1f} s, seed {parameters['seed'].int64_param}")
    print(f"wrote {arguments.out}")
    if arguments.checkpoint == parser.get_default("checkpoint"):
        print("(this checkpoint is a tiny one with random weights: the picture is texture, not the prompt)")


if __name__ == "__main__":
    main()

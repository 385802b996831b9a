"""Compares complete requests: this backend (`exact` and `fast` numerics), diffusers in the Python backend of the same
server, and stable-diffusion.cpp.

    .venv/bin/python benches/whole.py --checkpoint tiny --side 128 --steps 20
    .venv/bin/python benches/whole.py --checkpoint tiny --side 128 --steps 20 --clients 4 --name tiny_four_clients
    .venv/bin/python benches/whole.py --checkpoint full_size --side 256 --steps 4 --contenders fast,sdcpp

In each round, the contenders take turns. The time of a request begins before the client sends it and ends with the PNG
image. With --clients N, N clients send requests at once, and the value is the time of all divided by their number.
stable-diffusion.cpp runs in a separate process, without a server; its load does not count. All use DPM++ and
guidance.
"""

import argparse
import concurrent.futures
import functools
import pathlib
import shutil
import sys
import time
from collections.abc import Callable

import tritonclient.grpc as grpcclient

import checkpoints
import comparison
import process
import results
from client import input_tensors, read_response
from python_backend import ROOT, WORK, add_model, start
from server import ServerError

CONTENDERS = ("exact", "fast", "python", "sdcpp")
PROMPT = "a photo of an astronaut riding a horse"
GUIDANCE = 7.5
PEER = ROOT / "benches" / "peer_stable_diffusion_cpp.py"


def request(client: grpcclient.InferenceServerClient, model: str, side: int, steps: int) -> None:
    """Generates one image."""
    gen_args = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "height": side, "width": side}
    response = read_response(client.infer(model, input_tensors(grpcclient, {"prompt": PROMPT, "gen_args": gen_args})))
    if response.shape != [1, 1]:
        raise ServerError(f"{model} did not return one image")


def seconds_per_image(arguments: argparse.Namespace, once: Callable[[], None]) -> float:
    """Returns the seconds of all requests of all clients, divided by their number."""
    with concurrent.futures.ThreadPoolExecutor(arguments.clients) as pool:
        begin = time.perf_counter()
        clients = [pool.submit(lambda: [once() for _ in range(arguments.images)]) for _ in range(arguments.clients)]
        for client in clients:
            client.result()
        return (time.perf_counter() - begin) / (arguments.clients * arguments.images)


def without_server(arguments: argparse.Namespace, checkpoint: pathlib.Path) -> float:
    """Returns the seconds of an image of stable-diffusion.cpp."""
    words = [f"--side={arguments.side}", f"--steps={arguments.steps}", f"--images={arguments.images}"]
    run, _ = process.run("sdcpp", [arguments.bench_venv / "bin" / "python", PEER, checkpoint, *words])
    return sum(run["seconds"]) / len(run["seconds"])


def measure(arguments: argparse.Namespace, chosen: list[str]) -> tuple[dict[str, list[float]], str]:
    """Returns the samples of each contender, and the version of the server."""
    checkpoint = checkpoints.get(arguments.checkpoint)
    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    served = [name for name in chosen if name != "sdcpp"]
    for name in served:
        parameters = {} if name == "python" else {"numerics": name}
        backend = "python" if name == "python" else "diffusion"
        add_model(WORK / "model_repository", name, backend, checkpoint, **parameters)
    samples = {name: [] for name in chosen}
    with (
        start(WORK, arguments.reference_venv) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        for name in served:
            client.load_model(name)
            # The first request is slower than the others.
            request(client, name, arguments.side, arguments.warm_up)
        for number in range(arguments.rounds):
            for name in chosen:
                if name == "sdcpp":
                    value = without_server(arguments, checkpoint)
                else:
                    once = functools.partial(request, client, name, arguments.side, arguments.steps)
                    value = seconds_per_image(arguments, once)
                samples[name].append(value)
                print(f"round {number + 1}, {name}: {value:.3f} s per image", file=sys.stderr)
        return samples, client.get_server_metadata().version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "whole", 3)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="tiny")
    parser.add_argument("--side", type=int, default=128, help="height and width in pixels [default: 128]")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=2, help="steps of the first request [default: 2]")
    parser.add_argument("--clients", type=int, default=1, help="clients that send requests at once")
    parser.add_argument("--images", type=int, default=1, help="images of each client in a round")
    parser.add_argument("--contenders", default="exact,fast,python", help="some of " + ",".join(CONTENDERS))
    arguments = parser.parse_args()
    chosen = arguments.contenders.split(",")
    if "sdcpp" in chosen and (arguments.checkpoint != "full_size" or arguments.clients > 1):
        parser.error("stable-diffusion.cpp runs with the full-size checkpoint and one client only")

    samples, server = measure(arguments, chosen)
    settings = {key: getattr(arguments, key) for key in ("checkpoint", "side", "steps", "clients", "images")}
    print(f"{arguments.checkpoint}, {arguments.side}x{arguments.side}, {arguments.steps} steps", end="")
    print(f", {arguments.clients} clients" if arguments.clients > 1 else "")
    print("\n".join(comparison.lines(samples, "s per image")))
    results.save(arguments, "whole", settings, [{"what": "request", "samples": samples}], server=server)


if __name__ == "__main__":
    main()

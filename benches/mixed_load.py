"""Measures the latency of mixed requests that arrive at random, next to first in, first out.

    .venv/bin/python benches/mixed_load.py

40 requests of 10 to 50 steps, 1 to 4 images and two sizes arrive at random times, the same in each round. They need
80 % of what the server computes when it gets one after the other. `fifo` sends each when the one before has ended.
`fast` sends each when it arrives, and the backend decides. --before does the same with another build of the backend.
"""

import argparse
import concurrent.futures
import pathlib
import random
import shutil
import statistics
import sys
import time

import numpy as np
import tritonclient.grpc as grpcclient

import checkpoints
import comparison
import results
from client import input_tensors, read_response
from python_backend import WORK, add_model, start
from server import TritonServer

MODEL = "mixed"
COUNT = 40
LOAD = 0.8
PROMPT = "a red cube on a blue table"


def requests(sides: tuple[int, int]) -> list[dict]:
    """Returns the arguments of the requests, the same each time."""
    draw = random.Random(14)
    chosen = []
    for number in range(COUNT):
        side = draw.choice(sides)
        steps, images = draw.randint(10, 50), draw.randint(1, 4)
        size = {"height": side, "width": side, "num_images_per_prompt": images}
        chosen.append({"num_inference_steps": steps, "seed": number, **size})
    return chosen


def arrivals(seconds: float) -> list[float]:
    """Returns when the requests arrive, at random within so many seconds."""
    draw = random.Random(41)
    return sorted(draw.uniform(0, seconds) for _ in range(COUNT))


def infer(client: grpcclient.InferenceServerClient, gen_args: dict) -> None:
    """Waits for the images of one request."""
    tensors = input_tensors(grpcclient, {"prompt": PROMPT, "gen_args": gen_args})
    read_response(client.infer(MODEL, tensors))


def one_after_the_other(client: grpcclient.InferenceServerClient, todo: list[dict], times: list[float]) -> list[float]:
    """Returns the latencies if each request is sent when the one before has ended."""
    begin = time.perf_counter()
    latencies = []
    for gen_args, arrival in zip(todo, times, strict=True):
        time.sleep(max(0.0, begin + arrival - time.perf_counter()))
        infer(client, gen_args)
        latencies.append(time.perf_counter() - begin - arrival)
    return latencies


def at_once(client: grpcclient.InferenceServerClient, todo: list[dict], times: list[float]) -> list[float]:
    """Returns the latencies if each request is sent when it arrives."""
    begin = time.perf_counter()

    def send(gen_args: dict, arrival: float) -> float:
        time.sleep(max(0.0, begin + arrival - time.perf_counter()))
        infer(client, gen_args)
        return time.perf_counter() - begin - arrival

    with concurrent.futures.ThreadPoolExecutor(COUNT) as pool:
        return list(pool.map(send, todo, times))


def servers(arguments: argparse.Namespace) -> dict[str, TritonServer]:
    """Returns the servers to compare, by the name of their contender; they are not started."""
    made = {"fast": start(WORK, arguments.reference_venv)}
    if arguments.before:
        backends = start(WORK, arguments.reference_venv)
        backends.backends = arguments.before.resolve()
        backends.log_path = WORK / "before.log"
        made["before"] = backends
    return made


def measure(arguments: argparse.Namespace) -> tuple[list[dict], str]:
    """Returns the rows of mean and p99 latency, and the version of the server."""
    checkpoint = checkpoints.get(arguments.checkpoint)
    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    add_model(WORK / "model_repository", MODEL, "diffusion", checkpoint, numerics="fast")
    todo = requests(tuple(arguments.sides))
    samples: dict[str, dict[str, list[float]]] = {"mean": {}, "p99": {}, "alone": {}}
    span = None
    for number in range(arguments.rounds):
        for name, server in servers(arguments).items():
            with server, grpcclient.InferenceServerClient(server.grpc_address) as client:
                client.load_model(MODEL)
                for gen_args in todo[:3]:
                    infer(client, gen_args)
                begin = time.perf_counter()
                for gen_args in todo:
                    infer(client, gen_args)
                alone = time.perf_counter() - begin
                span = span or alone / LOAD
                version = client.get_server_metadata().version
                ways = {name: at_once}
                if name == "fast":
                    ways["fifo"] = one_after_the_other
                samples["alone"].setdefault(name, []).append(alone / COUNT)
                for way, send in ways.items():
                    latencies = send(client, todo, arrivals(span))
                    samples["mean"].setdefault(way, []).append(statistics.mean(latencies))
                    samples["p99"].setdefault(way, []).append(float(np.percentile(latencies, 99)))
                    text = f"mean {samples['mean'][way][-1]:.3f} s, p99 {samples['p99'][way][-1]:.3f} s"
                    print(f"round {number + 1}, {way}: {text}", file=sys.stderr)
    rows = [{"what": what, "samples": of} for what, of in samples.items()]
    return rows, version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "mixed_load", 3)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="tiny")
    parser.add_argument("--sides", type=int, nargs=2, default=[128, 256], help="sides of images [default: 128 256]")
    parser.add_argument("--before", type=pathlib.Path, help="folder of backends of another build")
    arguments = parser.parse_args()

    rows, server = measure(arguments)
    settings = {key: getattr(arguments, key) for key in ("checkpoint", "sides")}
    for row in rows:
        print(row["what"])
        for name, values in row["samples"].items():
            text = f"  {name:<10} {comparison.spread(values, 3)} s"
            if name != "fast":
                text += f"; {comparison.spread(comparison.ratios(row['samples'], name, 'fast'))} times `fast`"
            print(text)
    results.save(arguments, "mixed_load", settings, rows, server=server)


if __name__ == "__main__":
    main()

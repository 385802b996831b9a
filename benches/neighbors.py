"""Measures what two CPU instances, and loads at the same time, cost each other.

    .venv/bin/python benches/neighbors.py --numerics fast

A request alone has all cores. Two requests at once, each to a different instance, have half of the cores each, and a
third of the cores while a client loads and unloads a further model all the time. The value is how many times as long as
its share of the cores lets expect a request takes: 1 if nothing is lost.
"""

import argparse
import concurrent.futures
import functools
import shutil
import sys
import threading
import time

import tritonclient.grpc as grpcclient

import checkpoints
import comparison
import results
from python_backend import WORK, add_model, start
from whole import request

INSTANCES = ("first", "second")
LOADED = "loaded"


def seconds(once) -> float:
    """Returns the seconds of a call."""
    begin = time.perf_counter()
    once()
    return time.perf_counter() - begin


def loads(client: grpcclient.InferenceServerClient, ended: threading.Event) -> int:
    """Loads and unloads a model until `ended`, and returns how often."""
    count = 0
    while not ended.is_set():
        client.load_model(LOADED)
        client.unload_model(LOADED)
        count += 1
    return count


def measure(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], str]:
    """Returns the samples of two requests at once without and with loads, and the version of the server."""
    checkpoint = checkpoints.get(arguments.checkpoint)
    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    for name in (*INSTANCES, LOADED):
        add_model(WORK / "model_repository", name, "diffusion", checkpoint, numerics=arguments.numerics)
    samples: dict[str, list[float]] = {"two": [], "two_and_loads": []}
    with (
        start(WORK, arguments.reference_venv) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        once = functools.partial(request, client, side=arguments.side, steps=arguments.steps)
        for name in INSTANCES:
            client.load_model(name)
            once(name)
        for number in range(arguments.rounds):
            alone = seconds(functools.partial(once, INSTANCES[0]))
            for case, parties in (("two", 2), ("two_and_loads", 3)):
                ended = threading.Event()
                loading = pool.submit(loads, client, ended) if parties == 3 else None
                both = [pool.submit(seconds, functools.partial(once, name)) for name in INSTANCES]
                slowest = max(request.result() for request in both)
                ended.set()
                count = loading.result() if loading else 0
                samples[case].append(slowest / (parties * alone))
                print(f"round {number + 1}, {case}: {samples[case][-1]:.2f}, {count} loads", file=sys.stderr)
        return samples, client.get_server_metadata().version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "neighbors", 5)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="tiny")
    parser.add_argument("--numerics", choices=("fast", "exact"), default="fast")
    parser.add_argument("--side", type=int, default=128, help="height and width in pixels [default: 128]")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()

    samples, server = measure(arguments)
    settings = {key: getattr(arguments, key) for key in ("checkpoint", "numerics", "side", "steps")}
    for case, values in samples.items():
        print(f"{case}: {comparison.spread(values)} times its share")
    results.save(arguments, "neighbors", settings, [{"what": "share", "samples": samples}], server=server)


if __name__ == "__main__":
    main()

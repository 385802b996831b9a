"""Measures what the gateway adds to a request: the same requests through it, and with tritonclient straight to Triton.

    .venv/bin/python benches/gateway.py

One server computes small images of the tiny checkpoint for one client, with and without the gateway in turn, --rounds
times: from a model that sends one response, and from a decoupled model. The gateway is the release build in dist/bin.
"""

import argparse
import contextlib
import http.client
import json
import queue
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator

import tritonclient.grpc as grpcclient

import checkpoints
import comparison
import results
from client import input_tensors
from process import COMMAND, environment
from python_backend import WORK, add_model, start

DECOUPLED = "model_transaction_policy { decoupled: true }\n"
PROMPT = "a red cube on a blue table"
# The limit of the difference of the medians.
LIMIT_MS = 3.0


@contextlib.contextmanager
def gateway(triton: str) -> Iterator[http.client.HTTPConnection]:
    """Runs a gateway in front of a Triton; yields a connection to it."""
    command = [COMMAND, "gateway", "--triton", triton, "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            yield connection
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def through(connection: http.client.HTTPConnection, model: str, gen_args: dict) -> None:
    """Sends a request through the gateway, and reads the response."""
    size = f"{gen_args['width']}x{gen_args['height']}"
    rest = {key: gen_args[key] for key in ("num_inference_steps", "seed")}
    body = json.dumps({"model": model, "prompt": PROMPT, "size": size, **rest})
    connection.request("POST", "/v1/images/generations", body)
    response = connection.getresponse()
    reply = json.loads(response.read())
    if response.status != 200 or not reply["data"][0]["b64_json"]:
        raise RuntimeError(f"the gateway answered {response.status}")


def inputs(gen_args: dict) -> list[grpcclient.InferInput]:
    return input_tensors(grpcclient, {"prompt": PROMPT, "gen_args": gen_args})


def timed(send: Callable[[], object]) -> float:
    """Returns the seconds of a call."""
    begin = time.perf_counter()
    send()
    return time.perf_counter() - begin


def measure(arguments: argparse.Namespace) -> tuple[list[dict], str]:
    """Returns the rows of the result, and the version of the server."""
    repository = WORK / "model_repository"
    shutil.rmtree(repository, ignore_errors=True)
    for model in ("plain", "decoupled"):
        add_model(repository, model, "diffusion", checkpoints.get("tiny"))
    with (repository / "decoupled" / "config.pbtxt").open("a") as config:
        config.write(DECOUPLED)
    gen_args = {"height": arguments.side, "width": arguments.side, "num_inference_steps": arguments.steps, "seed": 1}
    received: queue.Queue = queue.Queue()
    with (
        start(WORK, arguments.reference_venv) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
        gateway(server.grpc_address) as connection,
    ):
        client.load_model("plain")
        client.load_model("decoupled")
        client.start_stream(lambda result, error: received.put((result, error)))

        def streamed() -> None:
            client.async_stream_infer("decoupled", inputs(gen_args))
            result, error = received.get(timeout=60)
            if error is not None or result.as_numpy("generated_image") is None:
                raise RuntimeError(f"the decoupled model sent no image: {error}")

        ways = {
            "plain": {
                "triton": lambda: client.infer("plain", inputs(gen_args)).as_numpy("generated_image"),
                "gateway": lambda: through(connection, "plain", gen_args),
            },
            "decoupled": {"triton": streamed, "gateway": lambda: through(connection, "decoupled", gen_args)},
        }
        samples = {model: {name: [] for name in sends} for model, sends in ways.items()}
        for number in range(arguments.warmup + arguments.rounds):
            for model, sends in ways.items():
                # The first of a pair is the other one in each round.
                for name in sorted(sends, reverse=bool(number % 2)):
                    seconds = timed(sends[name])
                    if number >= arguments.warmup:
                        samples[model][name].append(seconds)
        version = client.get_server_metadata().version
    return [{"what": model, "samples": of_model} for model, of_model in samples.items()], version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "gateway", 300)
    parser.add_argument("--side", type=int, default=64, help="height and width of the images [default: 64]")
    parser.add_argument("--steps", type=int, default=2, help="steps of a request [default: 2]")
    parser.add_argument("--warmup", type=int, default=30, help="rounds that do not count [default: 30]")
    arguments = parser.parse_args()

    rows, server = measure(arguments)
    for row in rows:
        straight, through_it = (statistics.median(row["samples"][name]) * 1000 for name in ("triton", "gateway"))
        ratio = statistics.median(comparison.ratios(row["samples"], "gateway", "triton"))
        print(
            f"{row['what']:<10} {straight:.2f} ms straight, {through_it:.2f} ms through the gateway: "
            f"{through_it - straight:+.2f} ms (limit {LIMIT_MS} ms), {ratio:.2f} times"
        )
    settings = {"checkpoint": "tiny", "side": arguments.side, "steps": arguments.steps}
    results.save(arguments, "gateway", settings, rows, server=server)


if __name__ == "__main__":
    main()

"""Measures LoRAs as models of their own, through the routes of a SageMaker multi-model endpoint.

    .venv/bin/python benches/lora_models.py --checkpoint full_size

One server loads a base and --count models of LoRAs of rank 16 that name the base by its digest. Then clients send
requests to several of these models, one after the other and all at once.
"""

import argparse
import concurrent.futures
import json
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.request

import checkpoints
import comparison
import results
from adapters import attention_layers, resident_bytes, write_lora
from python_backend import ROOT, WORK
from server import TritonServer

COMMAND = ROOT / "dist" / "bin" / "triton-diffusion"
CONFIG = """\
backend: "diffusion"
max_batch_size: 8
instance_group [{ kind: KIND_CPU }]
parameters { key: "numerics" value: { string_value: "fast" } }
"""


def loopback_bind(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the library that keeps the SageMaker front end on loopback."""
    library = folder / "libloopback_bind.so"
    source = ROOT / "tests" / "e2e" / "loopback_bind.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def send(url: str, body: dict, target: str) -> bytes:
    """Sends a request as SageMaker's router does."""
    headers = {"X-Amzn-SageMaker-Target-Model": target, "Content-Type": "application/json"}
    request = urllib.request.Request(url, method="POST", data=json.dumps(body).encode(), headers=headers)
    with urllib.request.urlopen(request, timeout=600) as reply:
        return reply.read()


class Endpoint:
    """A server with SageMaker's routes, and the models that it has loaded."""

    def __init__(self, server: TritonServer, side: int, steps: int):
        self.server = server
        gen_args = json.dumps({"height": side, "width": side, "num_inference_steps": steps, "seed": 1})
        texts = {"prompt": "a red cube on a blue table", "gen_args": gen_args}
        tensor = {"shape": [1, 1], "datatype": "BYTES"}
        self.body = {"inputs": [tensor | {"name": name, "data": [text]} for name, text in texts.items()]}

    def load(self, name: str, folder: pathlib.Path) -> float:
        """Loads a model; returns the seconds."""
        begin = time.perf_counter()
        send(f"{self.server.sagemaker_url}/models", {"model_name": name, "url": str(folder)}, name)
        return time.perf_counter() - begin

    def invoke(self, name: str) -> bytes:
        """Requests an image."""
        return send(f"{self.server.sagemaker_url}/models/{name}/invoke", self.body, name)

    def metric(self, name: str, **labels: str) -> float:
        """Returns the value of a metric; 0 before the first event."""
        return self.server.metric(f"diffusion_{name}", **labels) or 0


def add_base(folder: pathlib.Path, checkpoint: pathlib.Path) -> pathlib.Path:
    """Writes an unpacked archive of the base."""
    version = folder / "base" / "1"
    version.mkdir(parents=True)
    (folder / "base" / "config.pbtxt").write_text(CONFIG)
    (version / "checkpoint").symlink_to(checkpoint.resolve(), target_is_directory=True)
    return folder


def add_lora(folder: pathlib.Path, digest: str, layers: list, seed: int) -> pathlib.Path:
    """Writes an unpacked archive of a LoRA."""
    version = folder / "lora" / "1"
    version.mkdir(parents=True)
    parameters = {"base": digest, "lora": "lora.safetensors"}
    lines = [f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}' for key, value in parameters.items()]
    (folder / "lora" / "config.pbtxt").write_text(CONFIG + "\n".join(lines) + "\n")
    write_lora(version / "lora.safetensors", layers, seed)
    return folder


def measure(arguments: argparse.Namespace) -> list[dict]:
    """Returns the rows of the result."""
    checkpoint = checkpoints.get(arguments.checkpoint)
    work = WORK / "lora_models"
    shutil.rmtree(work, ignore_errors=True)
    (work / "empty").mkdir(parents=True)
    report = subprocess.run([COMMAND, "inspect", "--json", checkpoint], check=True, capture_output=True, text=True)
    digest = json.loads(report.stdout)["digest"]
    layers = attention_layers(checkpoint)
    names = [f"lora-{number}" for number in range(arguments.count)]
    folders = [add_lora(work / name, digest, layers, seed) for seed, name in enumerate(names)]

    environment = {"CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": None, "LD_PRELOAD": loopback_bind(work)}
    server = TritonServer(work / "empty", work / "log", environment=environment, sagemaker=True)
    with server:
        endpoint = Endpoint(server, arguments.side, arguments.steps)
        base_seconds = endpoint.load("base", add_base(work / "base", checkpoint))
        weights = endpoint.metric("weights_bytes", device="cpu")
        memory = resident_bytes(server.process.pid)
        loads = [endpoint.load(name, folder) for name, folder in zip(names, folders, strict=True)]
        added = endpoint.metric("weights_bytes", device="cpu") - weights
        grown = resident_bytes(server.process.pid) - memory
        print(f"base loaded in {base_seconds:.2f} s, {weights / 2**20:.0f} MiB of weights")
        print(f"{len(loads)} LoRAs: {1000 * max(loads[1:]):.0f} ms at most after the first, {1000 * loads[0]:.0f} ms")
        print(f"weights grew by {added / 2**20:.0f} MiB, the process by {grown / 2**20 / len(loads):.1f} MiB for each")

        asked = names[: arguments.clients]
        alone = [endpoint.invoke(name) for name in asked]
        seconds: dict[str, list[float]] = {"one by one": [], "at once": []}
        for _ in range(arguments.rounds):
            begin = time.perf_counter()
            for name in asked:
                endpoint.invoke(name)
            seconds["one by one"].append(time.perf_counter() - begin)
            calls = [endpoint.metric("unet_calls_total", model=name, version="1") for name in asked]
            sums = [endpoint.metric("unet_batch_size_sum", model=name, version="1") for name in asked]
            begin = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
                together = list(pool.map(endpoint.invoke, asked))
            seconds["at once"].append(time.perf_counter() - begin)
            data = [[json.loads(reply)["outputs"][0]["data"] for reply in replies] for replies in (alone, together)]
            if data[0] != data[1]:
                sys.exit("an image depends on the requests of other models")
            after = [endpoint.metric("unet_calls_total", model=name, version="1") for name in asked]
            size = [endpoint.metric("unet_batch_size_sum", model=name, version="1") for name in asked]
            mean = (sum(size) - sum(sums)) / (sum(after) - sum(calls))
            print(f"{len(asked)} requests at once: {mean:.1f} entries in a call with entries of a model; alone, 2")
    return [{"what": "loads", "samples": {"LoRA": loads}}, {"what": "requests", "samples": seconds}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "lora_models", 3)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="tiny")
    parser.add_argument("--side", type=int, default=256, help="height and width of the images [default: 256]")
    parser.add_argument("--steps", type=int, default=4, help="steps of a request [default: 4]")
    parser.add_argument("--count", type=int, default=50, help="models of LoRAs [default: 50]")
    parser.add_argument("--clients", type=int, default=8, help="models that get requests at once [default: 8]")
    arguments = parser.parse_args()

    rows = measure(arguments)
    for row in rows:
        for name, values in row["samples"].items():
            print(f"{row['what']}, {name}: {comparison.spread(values, 3)} s")
    settings = {key: getattr(arguments, key) for key in ("checkpoint", "side", "steps", "count", "clients")}
    results.save(arguments, "lora_models", settings, rows)


if __name__ == "__main__":
    main()

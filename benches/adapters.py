"""Measures what LoRAs cost: the steps of a request, the first request for a LoRA, and the memory of many LoRAs.

    .venv/bin/python benches/adapters.py --checkpoint full_size

One server computes requests with and without a LoRA of rank 16 on all attention layers, in turn. Then each of --cold
requests asks for a LoRA that is not in memory, and again when it is. At last the server answers a request for each of
--many LoRAs, with a bound of --cache MiB for those in memory.
"""

import argparse
import json
import pathlib
import re
import shutil
import struct
import time

import numpy as np
import tritonclient.grpc as grpcclient

import checkpoints
import comparison
import results
from client import input_tensors, read_response
from python_backend import WORK, add_model, start

MODEL = "adapted"
RANK = 16
PROMPT = "a red cube on a blue table"
ATTENTION = re.compile(r"(.*\.attn\d\.(?:to_q|to_k|to_v|to_out\.0))\.weight$")


def header(file: pathlib.Path) -> dict:
    """Returns the header of a safetensors file."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        return json.loads(opened.read(length))


def attention_layers(checkpoint: pathlib.Path) -> list[tuple[str, list[int]]]:
    """Returns the names and the shapes of the attention layers of a UNet."""
    found = []
    for file in (checkpoint / "unet").glob("*.safetensors"):
        for name, info in header(file).items():
            if match := ATTENTION.match(name):
                found.append((match[1], info["shape"]))
    return sorted(found)


def write_lora(file: pathlib.Path, layers: list[tuple[str, list[int]]], seed: int) -> None:
    """Writes a LoRA of noise in float16."""
    noise = np.random.default_rng(seed)
    tensors = {}
    for name, (outputs, inputs) in layers:
        for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
            tensors[f"unet.{name}.{part}.weight"] = (0.01 * noise.standard_normal(shape)).astype(np.float16)
    entries, end = {}, 0
    for name, tensor in tensors.items():
        entries[name] = {"dtype": "F16", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(entries).encode()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            opened.write(tensor.tobytes())


def resident_bytes(pid: int) -> int:
    """Returns the memory that a process has."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) << 10


class Requests:
    """Sends requests of one size to the model."""

    def __init__(self, client: grpcclient.InferenceServerClient, side: int, steps: int):
        self.client = client
        self.gen_args = {"height": side, "width": side, "num_inference_steps": steps, "seed": 1}

    def infer(self, *loras: str, **more: int) -> tuple[float, dict]:
        """Returns the latency of a request, and the times of its phases in milliseconds."""
        gen_args = self.gen_args | more | {"loras": [{"name": name} for name in loras]}
        begin = time.perf_counter()
        response = read_response(
            self.client.infer(MODEL, input_tensors(grpcclient, {"prompt": PROMPT, "gen_args": gen_args}))
        )
        return time.perf_counter() - begin, response.timings_ms


def measure(arguments: argparse.Namespace) -> tuple[list[dict], str]:
    """Returns the rows of the result, and the version of the server."""
    checkpoint = checkpoints.get(arguments.checkpoint)
    repository = WORK / "model_repository"
    shutil.rmtree(repository, ignore_errors=True)
    cache = arguments.cache << 20
    parameters = {"numerics": arguments.numerics, "lora_cache_bytes": str(cache)}
    add_model(repository, MODEL, "diffusion", checkpoint, **parameters)
    loras = repository / MODEL / "1" / "loras"
    loras.mkdir()
    layers = attention_layers(checkpoint)
    for number in range(arguments.cold):
        write_lora(loras / f"cold-{number}.safetensors", layers, number)
    write_lora(loras / "warm.safetensors", layers, arguments.cold)

    step: dict[str, list[float]] = {"without": [], "with": []}
    first: dict[str, list[float]] = {"warm": [], "cold": []}
    with (
        start(WORK, arguments.reference_venv) as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        client.load_model(MODEL)
        requests = Requests(client, arguments.side, arguments.steps)
        for names in ([], ["warm"]):
            requests.infer(*names)
        for _ in range(arguments.rounds):
            for name, names in (("without", []), ("with", ["warm"])):
                step[name].append(requests.infer(*names)[1]["steps"] / arguments.steps / 1000)
        short = {"height": 64, "width": 64, "num_inference_steps": 1}
        requests.infer("warm", **short)
        for number in range(arguments.cold):
            for name in ("cold", "warm"):
                first[name].append(requests.infer(f"cold-{number}", **short)[0])
        before = resident_bytes(server.process.pid)
        for number in range(arguments.many):
            file = loras / "many.safetensors"
            write_lora(loras / "many.new", layers, number)
            (loras / "many.new").rename(file)
            requests.infer("many", **short)
        grown = resident_bytes(server.process.pid) - before
        version = client.get_server_metadata().version
    print(f"{arguments.many} LoRAs: {grown >> 20} MiB more, with {arguments.cache} MiB of LoRAs in memory at most")
    rows = [{"what": "step", "samples": step}, {"what": "first request for a LoRA", "samples": first}]
    return rows, version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "adapters", 5)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="tiny")
    parser.add_argument("--numerics", choices=comparison.OURS, default="fast")
    parser.add_argument("--side", type=int, default=256, help="height and width of the images [default: 256]")
    parser.add_argument("--steps", type=int, default=4, help="steps of a request [default: 4]")
    parser.add_argument("--cold", type=int, default=5, help="LoRAs that are not in memory [default: 5]")
    parser.add_argument("--many", type=int, default=0, help="LoRAs that are asked for in turn [default: 0]")
    parser.add_argument("--cache", type=int, default=64, help="MiB of LoRAs in memory [default: 64]")
    arguments = parser.parse_args()

    rows, server = measure(arguments)
    for row in rows:
        print(row["what"])
        for name, values in row["samples"].items():
            base = next(iter(row["samples"]))
            ratio = comparison.spread(comparison.ratios(row["samples"], name, base))
            print(f"  {name:<10} {comparison.spread(values, 3)} s; {ratio} times `{base}`")
    settings = {key: getattr(arguments, key) for key in ("checkpoint", "side", "steps", "cold", "many", "cache")}
    results.save(arguments, "adapters", settings, rows, server=server)


if __name__ == "__main__":
    main()

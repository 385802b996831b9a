"""Compares memory and load time of fine-tunes that differ only in the UNet, in this backend and in diffusers behind
Triton's Python backend.

    .venv/bin/python benches/many_models.py --checkpoint tiny --count 20

The program loads `--count` fine-tunes into this backend, then `--peers` into the Python backend, which runs one process
each; the memory of the latter is extrapolated to `--count`. After each load, the model generates one image. Memory is
the proportional set size of the server and its children, less that of the empty server. All files are in the page cache
before the first load.
"""

import argparse
import pathlib
import shutil
import time

import numpy as np
import tritonclient.http as httpclient
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import checkpoints
import comparison
import results
from linked_components import files
from python_backend import WORK, add_model, infer, start

MIB = 2**20
UNET = pathlib.Path("unet") / "diffusion_pytorch_model.safetensors"


def write_fine_tune(checkpoint, folder, number):
    """Writes a checkpoint with links to all files but the UNet, whose tensors differ in their first byte."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in files(checkpoint.resolve()):
        name = path.relative_to(checkpoint.resolve())
        if name != UNET:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    tensors = load_file(checkpoint / UNET)
    for tensor in tensors.values():
        tensor.reshape(-1).view(np.uint8)[0] ^= number
    (folder / UNET).parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / UNET)
    return folder


def processes(pid):
    """Returns the ids of a process and of all its descendants."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [each for child in children for each in processes(int(child))]


def memory(server):
    """Returns the proportional set size of the server and its children in bytes."""
    total = 0
    for pid in processes(server.process.pid):
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def measure(arguments, backend, folders):
    """Loads a model for each folder and generates an image with it.

    `backend` is `python`, or the numerics of this backend. Returns the memory of all models, the seconds of each load,
    the value of the metric of weights in bytes, and the version of the server.
    """
    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    names = [f"tune_{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        if backend == "python":
            add_model(WORK / "model_repository", name, backend, folder)
        else:
            add_model(WORK / "model_repository", name, "diffusion", folder, numerics=backend)
    with (
        start(WORK, arguments.reference_venv) as server,
        httpclient.InferenceServerClient(server.http_address, network_timeout=1200.0) as client,
    ):
        empty, seconds = memory(server), []
        for name in names:
            started = time.monotonic()
            client.load_model(name)
            seconds.append(time.monotonic() - started)
            infer(client, name, arguments.side)
        weights = server.metric("diffusion_weights_bytes", device="cpu") or 0
        return memory(server) - empty, seconds, weights, client.get_server_metadata()["version"]


def memory_of_tensor(dtype, shape, size):
    """Returns the memory of a tensor of `size` bytes in a float32 model on the CPU: large matrices stay in float16."""
    stays = dtype == "F32" or (len(shape) > 1 and size >= 2**20)
    return size * (1 if stays else 2)


def distinct_bytes(folders):
    """Returns the memory of the tensors of all folders; equal tensors count once."""
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in sorted(file.keys()):
                entry = file.get_slice(name)
                dtype, shape = entry.get_dtype(), tuple(entry.get_shape())
                if dtype in ("F16", "BF16", "F32"):
                    data = file.get_tensor(name).tobytes()
                    found[shape, hash(data)] = memory_of_tensor(dtype, shape, len(data))
    return sum(found.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "many_models")
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="tiny")
    parser.add_argument("--numerics", choices=comparison.OURS, default="fast")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument("--side", type=int, default=64, help="height and width of the images [default: 64]")
    arguments = parser.parse_args()
    if not 2 <= arguments.peers <= arguments.count:
        parser.error("expected 2 or more peers, and no more than --count")

    tunes = WORK / "tunes"
    shutil.rmtree(tunes, ignore_errors=True)
    checkpoint = checkpoints.get(arguments.checkpoint)
    folders = [write_fine_tune(checkpoint, tunes / f"{number}", number + 1) for number in range(arguments.count)]
    distinct = distinct_bytes(folders)
    ours, peer = arguments.numerics, "python"
    here, seconds, weights, version = measure(arguments, ours, folders)
    there, peer_seconds, _, _ = measure(arguments, peer, folders[: arguments.peers])
    there *= arguments.count / arguments.peers

    further = slice(1, arguments.peers)
    rows = [
        {"what": "first load", "samples": {ours: seconds[:1], peer: peer_seconds[:1]}},
        {"what": "a further load", "samples": {ours: seconds[further], peer: peer_seconds[further]}},
        {
            "what": f"memory of {arguments.count} models",
            "unit": "MiB",
            "samples": {ours: [here / MIB], peer: [there / MIB]},
        },
    ]
    print(f"{arguments.count} fine-tunes of {arguments.checkpoint} that differ in the UNet, on the CPU in float32")
    print(f"distinct tensors {distinct / MIB:.0f} MiB; the store holds {weights / MIB:.0f} ({weights / distinct:.1%})")
    print(f"the memory of the Python backend is measured with {arguments.peers}")
    for row in rows:
        print("\n".join([row["what"], *comparison.lines(row["samples"], row.get("unit", "s"))]))
    settings = {key: getattr(arguments, key) for key in ("checkpoint", "count", "peers")}
    results.save(arguments, "load", settings, rows, server=version)


if __name__ == "__main__":
    main()

"""Compares memory and load time of fine-tunes that differ only in the UNet, in this backend and in diffusers behind
Triton's Python backend.

    make bench        (or: .venv/bin/python benches/many_models.py --reference-venv .venv-reference --count 20)

The program loads `--count` fine-tunes into this backend, then `--peers` into the Python backend, which runs one process
each; the memory of the latter is extrapolated to `--count`. Memory is the proportional set size of the server and its
children, less that of the empty server. All files are in the page cache before the first load.
"""

import argparse
import pathlib
import shutil
import time

import numpy as np
import tritonclient.http as httpclient
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

# peer puts tools/ on the path.
from linked_components import files
from python_backend import REFERENCE_VENV, TINY, WORK, add_model, infer, start

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

    Returns the memory of all models, the seconds of each load, and the value of the metric of weights in bytes.
    """
    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    names = [f"tune_{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        add_model(WORK / "model_repository", name, backend, folder)
    with (
        start(WORK, arguments.reference_venv) as server,
        httpclient.InferenceServerClient(server.http_address, network_timeout=1200.0) as client,
    ):
        empty, seconds = memory(server), []
        for name in names:
            started = time.monotonic()
            client.load_model(name)
            seconds.append(time.monotonic() - started)
            if arguments.images:
                infer(client, name)
        weights = server.metric("diffusion_weights_bytes", device="cpu") or 0
        return memory(server) - empty, seconds, weights


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
    parser.add_argument("--reference-venv", type=pathlib.Path, default=REFERENCE_VENV)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=TINY)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument(
        "--no-images", dest="images", action="store_false", help="only load; a full-size image takes minutes"
    )
    arguments = parser.parse_args()

    tunes = WORK / "tunes"
    shutil.rmtree(tunes, ignore_errors=True)
    folders = [
        write_fine_tune(arguments.checkpoint, tunes / f"{number}", number + 1) for number in range(arguments.count)
    ]
    distinct = distinct_bytes(folders)
    here, seconds, weights = measure(arguments, "diffusion", folders)
    peer, peer_seconds, _ = measure(arguments, "python", folders[: arguments.peers])
    peer *= arguments.count / arguments.peers

    mib = 2**20
    print(f"{arguments.count} fine-tunes of {arguments.checkpoint.name} that differ in the UNet, on the CPU in float32")
    ratio = weights / distinct
    print(f"  distinct tensors {distinct / mib:9.0f} MiB; the store holds {weights / mib:.0f} MiB ({ratio:.1%})")
    print(f"  this backend     {here / mib:9.0f} MiB in one process")
    print(f"  Python backend   {peer / mib:9.0f} MiB in {arguments.count} (measured with {arguments.peers})")
    print(f"  ratio            {here / peer:9.1%}")
    first, peer_first = seconds[0], peer_seconds[0]
    print(f"  first load       {first:9.2f} s here, {peer_first:.2f} s there: {first / peer_first:.1%}")
    if len(seconds) > 1 and len(peer_seconds) > 1:
        later, peer_later = min(seconds[1:]), min(peer_seconds[1:])
        print(f"  a further load   {later:9.2f} s here, {peer_later:.2f} s there: {later / peer_later:.1%}")


if __name__ == "__main__":
    main()

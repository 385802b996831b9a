"""Memory and load time of fine-tunes that differ in the UNet only, here and in diffusers behind Triton's Python
backend.

    make bench        (or: .venv/bin/python benches/many_models.py --reference-venv .venv-reference --count 20)

`--count` fine-tunes are loaded into this backend and measured, then `--peers` into the Python backend, one process
each; the figures of the peers are extrapolated to `--count`. Memory is the proportional set size of the server and its
children beyond that of the empty server. Each file is read once before, so that all of them lie in the page cache.
"""

import argparse
import json
import pathlib
import shutil
import struct
import time

import tritonclient.http as httpclient
from peer import REFERENCE_VENV, TINY, WORK, add_model, infer, start

# peer puts tools/ on the path.
from linked_components import files  # noqa: E402

UNET = pathlib.Path("unet") / "diffusion_pytorch_model.safetensors"


def tuned(checkpoint, folder, number):
    """A copy of the checkpoint, links but for the UNet, every tensor of which differs in its first number."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in files(checkpoint.resolve()):
        name = path.relative_to(checkpoint.resolve())
        if name != UNET:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path)
    content = bytearray((checkpoint / UNET).read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for name, entry in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__":
            content[8 + length + entry["data_offsets"][0]] ^= number
    (folder / UNET).parent.mkdir(parents=True, exist_ok=True)
    (folder / UNET).write_bytes(content)
    return folder


def processes(pid):
    """A process and all that it started."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [below for child in children for below in processes(int(child))]


def memory(server):
    """Proportional set size of the server and its children, in bytes."""
    total = 0
    for pid in processes(server.process.pid):
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def measure(arguments, backend, folders):
    """Loads a model over each folder and asks it for a picture: (memory of all, seconds of each load, bytes of the
    weights metric)."""
    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    names = [f"tune_{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders):
        add_model(WORK / "model_repository", name, backend, folder)
    with start(WORK, arguments.reference_venv) as server:
        with httpclient.InferenceServerClient(server.http_address, network_timeout=1200.0) as client:
            empty, seconds = memory(server), []
            for name in names:
                started = time.monotonic()
                client.load_model(name)
                seconds.append(time.monotonic() - started)
                if arguments.pictures:
                    infer(client, name)
            weights = server.metric("diffusion_weights_bytes", device="cpu") or 0
            return memory(server) - empty, seconds, weights


def bytes_here(entry):
    """What a tensor takes on the CPU for a model in float32: large matrices stay in half precision."""
    begin, end = entry["data_offsets"]
    stays = entry["dtype"] == "F32" or (len(entry["shape"]) > 1 and end - begin >= 2**20)
    return (end - begin) * (1 if stays else 2)


def distinct_bytes(folders):
    """The bytes that the tensors of all folders take, equal ones counted once."""
    seen = {}
    for folder in folders:
        for path in folder.rglob("*.safetensors"):
            content = path.read_bytes()
            (length,) = struct.unpack("<Q", content[:8])
            for name, entry in json.loads(content[8 : 8 + length]).items():
                if name != "__metadata__" and entry["dtype"] in ("F16", "BF16", "F32"):
                    begin, end = entry["data_offsets"]
                    data = hash(content[8 + length + begin : 8 + length + end])
                    seen[(tuple(entry["shape"]), data)] = bytes_here(entry)
    return sum(seen.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-venv", type=pathlib.Path, default=REFERENCE_VENV)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=TINY)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--peers", type=int, default=3)
    parser.add_argument(
        "--no-pictures", dest="pictures", action="store_false", help="load only; a full-size picture takes minutes"
    )
    arguments = parser.parse_args()

    tunes = WORK / "tunes"
    shutil.rmtree(tunes, ignore_errors=True)
    folders = [tuned(arguments.checkpoint, tunes / f"{number}", number + 1) for number in range(arguments.count)]
    distinct = distinct_bytes(folders)
    ours, our_seconds, weights = measure(arguments, "diffusion", folders)
    theirs, their_seconds, _ = measure(arguments, "python", folders[: arguments.peers])
    theirs *= arguments.count / arguments.peers

    mib = 2**20
    print(f"{arguments.count} fine-tunes of {arguments.checkpoint.name} that differ in the UNet, on the CPU in float32")
    held = weights / distinct
    print(f"  distinct tensors {distinct / mib:9.0f} MiB; the store holds {weights / mib:.0f} MiB ({held:.1%})")
    print(f"  this backend     {ours / mib:9.0f} MiB in one process")
    print(f"  Python backend   {theirs / mib:9.0f} MiB in {arguments.count} (measured with {arguments.peers})")
    print(f"  ratio            {ours / theirs:9.1%}")
    here, there = our_seconds[0], their_seconds[0]
    print(f"  first load       {here:9.2f} s here, {there:.2f} s there: {here / there:.1%}")
    if len(our_seconds) > 1 and len(their_seconds) > 1:
        here, there = min(our_seconds[1:]), min(their_seconds[1:])
        print(f"  a further load   {here:9.2f} s here, {there:.2f} s there: {here / there:.1%}")


if __name__ == "__main__":
    main()

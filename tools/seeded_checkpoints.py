#!/usr/bin/env python3
"""Generates the tiny checkpoints of the tests and benches: tests/data/checkpoints -> target/checkpoints.

A component's folder in tests/data/checkpoints holds its small files and, instead of weights, a recipe, weights.json:

    {"file": "diffusion_pytorch_model.safetensors", "sha256": "...", "seed": "sd1/unet",
     "tensors": {"conv_in": {"bias": [[16], "bias"], "weight": [[16, 4, 3, 3], {"weight": 1}]}, ...}}

`file` is the safetensors file to write, `sha256` its digest, and `tensors` the tree of the model's modules. Its leaves
are the float16 tensors, each with its shape and a rule. The file holds them sorted by their dotted names. A rule says
how the tensor's standard normal noise is scaled:

    "norm"               1 + 0.1 noise (the weight of a normalization)
    "bias"               0.1 noise
    {"embedding": gain}  gain x noise
    {"weight": gain}     gain / sqrt(fan_in) x noise, where fan_in is the product of all dimensions but the first
    {"values": [...]}    these values, without noise

The noise comes from numpy's PCG64 and `standard_normal`, with one stream for each tensor name. Neither the order of the
tensors nor the processor changes a byte. crates/test_support does the same in Rust; both check the digest.
"""

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data" / "checkpoints"
OUT = ROOT / "target" / "checkpoints"
RECIPE = "weights.json"
# The state of the data from which a folder was generated.
STAMP = ".stamp"
# Part of the stamp. Change it, here and in crates/test_support, when the same data shall give other files.
VERSION = "1"


def tensor(seed, name, shape, rule):
    """The float16 values of a tensor."""
    kind, argument = next(iter(rule.items())) if isinstance(rule, dict) else (rule, None)
    if kind == "values":
        return np.array(argument, dtype=np.float16).reshape(shape)
    # A parameter of the model itself has the stream of a module without a name.
    stream = f"{seed}/{name if '.' in name else '.' + name}"
    digest = hashlib.sha256(stream.encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    noise = generator.standard_normal(tuple(shape)).astype(np.float32)
    if kind == "weight":
        argument /= np.sqrt(max(1, int(np.prod(shape[1:]))))
    scale = {"norm": 0.1, "bias": 0.1, "embedding": argument, "weight": argument}[kind]
    values = noise * np.float32(scale)
    if kind == "norm":
        values += np.float32(1)
    return values.astype(np.float16)


def flat(tree, prefix=""):
    """(name, shape, rule) of each tensor in a tree of modules."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", *value


def weights(recipe):
    """The safetensors file of a recipe.

    Raises ValueError if its digest is not the recipe's.
    """
    header, data, end = {"__metadata__": {"format": "pt"}}, [], 0
    for name, shape, rule in sorted(flat(recipe["tensors"]), key=lambda each: each[0]):
        data.append(tensor(recipe["seed"], name, shape, rule).tobytes())
        begin, end = end, end + len(data[-1])
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = struct.pack("<Q", len(text)) + text + b"".join(data)
    digest = hashlib.sha256(file).hexdigest()
    if digest != recipe["sha256"]:
        raise ValueError(f"weights of {recipe['seed']}: expected sha256 {recipe['sha256']}, got {digest}")
    return file


def _entries(folder, prefix=""):
    """(relative path, entry) of every file and link below a folder; links are not followed."""
    for entry in os.scandir(folder):
        path = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path, path + "/")
        else:
            yield path, entry


def stamp(data):
    """A digest of everything below a folder."""
    lines = [f"version\0{VERSION}\n"]
    for path, entry in sorted(_entries(data), key=lambda each: each[0].encode()):
        if entry.is_symlink():
            lines.append(f"link\0{path}\0{os.readlink(entry.path)}\n")
        else:
            lines.append(f"file\0{path}\0{hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _generate(data, out):
    for path, entry in _entries(data):
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.is_symlink():
            target.symlink_to(os.readlink(entry.path))
        elif entry.name == RECIPE:
            recipe = json.loads(Path(entry.path).read_text())
            target.with_name(recipe["file"]).write_bytes(weights(recipe))
        else:
            shutil.copyfile(entry.path, target)


def write(out=OUT, data=DATA):
    """Generates the checkpoints unless they are up to date. Returns `out`, which holds one folder for each family.

    Processes may call this at the same time: a lock lets one of them do the work. The folder gets its name when it is
    complete.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.with_name(f"{out.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = stamp(data)
        if (out / STAMP).is_file() and (out / STAMP).read_text() == state:
            return out
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as work:
            complete = Path(work, "new")
            _generate(data, complete)
            (complete / STAMP).write_text(state)
            if out.exists():
                out.rename(Path(work, "old"))
            complete.rename(out)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="small files and recipes")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    arguments = parser.parse_args()
    print(write(arguments.out.resolve(), arguments.data))


if __name__ == "__main__":
    main()

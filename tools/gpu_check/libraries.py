"""libtorch and CUDA's libraries in the PyTorch that this Python has; PyTorch is not imported."""

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA_PATH = "TRITON_DIFFUSION_CUDA_PATH"
# OpenMP's threads wait for each other by spinning, which is slow when several programs run.
SPIN_COUNT = "10000"


def expected_version():
    """The version of PyTorch whose libtorch the command is built with."""
    text = (ROOT / "tools" / "requirements.txt").read_text()
    return re.search(r"^torch==(\S+)", text, re.MULTILINE)[1]


def installed_version():
    """The version of this Python's PyTorch without its local part, or None."""
    try:
        return importlib.metadata.version("torch").split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_folder():
    """The folder `torch/lib` of this Python, or None if it has no PyTorch of the expected version."""
    if installed_version() != expected_version():
        return None
    found = importlib.util.find_spec("torch")
    folders = [Path(place, "lib") for place in (found and found.submodule_search_locations) or []]
    return next((folder for folder in folders if (folder / "libtorch_cpu.so").exists()), None)


def environment(device, folder):
    """The environment in which the command finds libtorch, and CUDA's libraries if `device` is a GPU.

    `folder` is `torch/lib` or None, which leaves the environment as it is. What the user has set stays first.
    """
    result = {"GOMP_SPINCOUNT": SPIN_COUNT} | os.environ
    if folder is None:
        return result
    nvidia = sorted(folder.parents[1].glob("nvidia/*/lib"))
    paths = [result.get("LD_LIBRARY_PATH"), str(folder), *map(str, nvidia)]
    result["LD_LIBRARY_PATH"] = ":".join(path for path in paths if path)
    if device != "cpu" and (folder / "libtorch_cuda.so").exists():
        result.setdefault(CUDA_PATH, str(folder))
    return result

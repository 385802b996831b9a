"""Runs the command `triton-diffusion` of this package: in place of Python, with the same arguments."""

import importlib.metadata
import os
import pathlib
import sys


def libtorch_problem(site_packages):
    """Returns why the command would not find its libtorch, or None. It does without importing `torch`."""
    (requirement,) = importlib.metadata.requires("triton-diffusion")
    _, _, wanted = requirement.partition("==")
    library = site_packages / "torch" / "lib" / "libtorch_cpu.so"
    if not library.exists():
        return f"{library} does not exist: the package torch {wanted} must be in the same folder as triton_diffusion"
    try:
        # Builds for one kind of device have a local version: 2.11.0+cpu.
        found, _, _ = importlib.metadata.version("torch").partition("+")
    except importlib.metadata.PackageNotFoundError:
        return None
    return None if found == wanted else f"torch {wanted} is needed, but torch {found} is installed"


def main():
    # The loader resolves links before it searches libtorch next to the command.
    package = pathlib.Path(__file__).resolve().parent
    problem = libtorch_problem(package.parent)
    if problem is not None:
        sys.exit(f"error: {problem}")
    os.execv(package / "bin" / "triton-diffusion", ["triton-diffusion", *sys.argv[1:]])


if __name__ == "__main__":
    main()

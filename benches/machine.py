"""Says on which machine, and with which versions, a result was made."""

import importlib.metadata
import os
import pathlib
import platform
import re
import subprocess

from python_backend import ROOT, ask_python

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
# Packages of the peers.
PACKAGES = ("torch", "diffusers", "transformers", "openvino", "cyllama")


def facts() -> dict[str, str]:
    """Returns what is known about this machine."""
    processor = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    kibibytes = re.search(r"^MemTotal:\s*(\d+) kB", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    vectors = [name for name in ("avx2", "avx512f", "amx_tile") if name in flags]
    huge = re.search(r"\[(\w+)\]", HUGE_PAGES.read_text()) if HUGE_PAGES.exists() else None
    return {
        "processor": processor[1] if processor else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "vectors": ", ".join(vectors),
        "memory": f"{int(kibibytes[1]) / 2**20:.0f} GiB" if kibibytes else "unknown",
        "huge pages": huge[1] if huge else "unknown",
        "kernel": platform.release(),
    }


def versions(venv: pathlib.Path, server: str | None = None) -> dict[str, str]:
    """Returns the versions of this repository, of the peers in an environment, and of tritonserver if it is known."""
    site = ask_python(venv / "bin" / "python", "'|'.join(sys.path)").split("|")
    found = {"triton-diffusion": commit()}
    for package in PACKAGES:
        installed = next(iter(importlib.metadata.distributions(name=package, path=site)), None)
        if installed is not None:
            found[package] = installed.version
    return found | ({"tritonserver": server} if server else {})


def commit() -> str:
    """Returns the commit of the working tree, with "+" if files differ from it."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"

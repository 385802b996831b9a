"""Runs a program that prints one JSON object, and measures its peak memory."""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import tempfile
from collections.abc import Sequence

from python_backend import ROOT

LOGS = ROOT / "target" / "bench" / "logs"
COMMAND = ROOT / "dist" / "bin" / "triton-diffusion"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Failed(Exception):
    """A program ended with an error."""


def environment() -> dict[str, str]:
    """Returns the environment of every contender: no GPU, no network, and each with its own default of OpenMP."""
    found = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    return found | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}


def run(name: str, program: Sequence[object]) -> tuple[dict, int]:
    """Runs a program; returns its JSON object and its peak memory in bytes.

    What it writes to standard error goes to target/bench/logs/NAME.log. Raises Failed.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with tempfile.TemporaryFile() as output, open(log, "wb") as errors:
        process = subprocess.Popen(
            [str(word) for word in program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment(),
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode != 0:
        tail = log.read_text(errors="replace").strip().splitlines()[-5:]
        raise Failed("\n".join([f"{name}: exit status {process.returncode}, see {log}", *tail]))
    # ru_maxrss is VmHWM in KiB.
    return json.loads(text), usage.ru_maxrss * 1024


def ours(
    numerics: str, checkpoint: pathlib.Path, *, side: int, steps: int, images: int = 1, **parameters: str
) -> tuple[dict, int]:
    """Runs `triton-diffusion benchmark`; returns its run for this number of images, and its peak memory in bytes.

    `parameters` are those of config.pbtxt.
    """
    options = {"device": "cpu", "images": images, "steps": steps, "height": side, "width": side}
    parameters = {"numerics": numerics} | parameters
    words = [f"--parameter={key}={value}" for key, value in parameters.items()]
    words += [f"--{key}={value}" for key, value in options.items()]
    result, peak = run(numerics, [COMMAND, "benchmark", checkpoint, *words, "--json"])
    return result["runs"][0] | {"load_seconds": result["load_seconds"]}, peak

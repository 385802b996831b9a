"""Reads the result of `triton-diffusion benchmark --json`, and runs the eager UNet in its own process."""

import json
import math
import sys
from pathlib import Path

from command import run

# The numbers of a run that must be there and positive.
TIMES = ("prepare_ms", "first_step_ms", "step_ms", "finish_ms")
EAGER = Path(__file__).with_name("eager_speed.py")


class Failed(Exception):
    """A benchmark did not run to its end, or its result is not what it should be."""


def _positive(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def read(text, images):
    """The runs of a result by their number of images.

    Raises Failed unless the text is one JSON object with `device`, `dtype`, `load_seconds`, `weights_bytes` and `runs`,
    with one run for each number of `images` and with positive times. `memory_used_bytes` may be null.
    """
    try:
        result = json.loads(text)
    except ValueError as error:
        raise Failed(f"expected one JSON object, got {text[:80]!r}: {error}") from error
    if not isinstance(result, dict):
        raise Failed(f"expected one JSON object, got {text[:80]!r}")
    for key in ("device", "dtype", "load_seconds", "weights_bytes", "runs"):
        if key not in result:
            raise Failed(f"expected the key {key}")
    runs = {}
    for one in result["runs"]:
        for key in TIMES:
            if not _positive(one.get(key)):
                raise Failed(f"run of {one.get('images')} images: expected a positive {key}, got {one.get(key)}")
        if one.get("memory_used_bytes") is not None and not _positive(one["memory_used_bytes"]):
            raise Failed(f"run of {one['images']} images: expected bytes, got {one['memory_used_bytes']}")
        runs[one["images"]] = one
    if sorted(runs) != sorted(images):
        raise Failed(f"expected runs of {sorted(images)} images, got {sorted(runs)}")
    return result, runs


def options(workload):
    """The options that both benchmarks have. `workload` has `device`, `dtype`, `images`, `steps`, `height`, `width`."""
    pairs = workload | {"images": ",".join(map(str, workload["images"]))}
    return [part for key, value in pairs.items() for part in (f"--{key}", str(value))]


def of_command(command, folder, workload, deadline):
    """Runs the command's benchmark.

    Numbers of images that do not fit into memory are left out. Raises Failed or OutOfTime.
    """
    counts = sorted(workload["images"])
    while True:
        arguments = options(workload | {"images": counts})
        outcome = command.run("benchmark", folder, *arguments, "--json", timeout=deadline.remaining())
        if outcome.status == 0:
            return read(outcome.stdout, counts)
        if "out of memory" not in outcome.stderr or len(counts) == 1:
            raise Failed(f"benchmark: {outcome.explain()}")
        counts = counts[:-1]


def of_eager(folder, workload, environment, deadline):
    """Runs the eager UNet; returns its runs by their number of images.

    Raises Failed or OutOfTime.
    """
    arguments = [sys.executable, EAGER, folder, *options(workload)]
    outcome = run(arguments, environment, deadline.remaining())
    if outcome.status != 0:
        raise Failed(f"eager UNet: {outcome.explain()}")
    return {one["images"]: one for one in json.loads(outcome.stdout)["runs"]}

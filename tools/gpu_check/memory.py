"""Out of memory: with less and less memory the command must give the same image, or end with "out of memory".

Two ways take the memory away. libtorch's allocator has a limit, `per_process_memory_fraction`: then CUDA itself still
has memory. Another program that holds the memory of the GPU also makes CUDA, cuDNN and cuBLAS fail.
"""

import concurrent.futures
import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

import images
from budget import OutOfTime
from correctness import FLOAT16_LIMIT

# What is left, as multiples of the size of the weights.
LIMITS = (3.0, 2.0, 1.5, 1.25, 1.1, 1.0, 0.9, 0.5, 0.1)
FREE = (4.0, 2.0, 1.5, 1.25, 1.0, 0.1)
QUICK = (3.0, 1.1, 0.1)
# The least PSNR in dB of an image with little memory: with other algorithms, float16 rounds in another way.
SAME_IMAGE = FLOAT16_LIMIT
# Seconds for one image, and for the program that holds memory to start.
TIMEOUT = 90
HOLDER = Path(__file__).with_name("hold_memory.py")
ALLOCATOR = "PYTORCH_ALLOC_CONF"


class Failed(Exception):
    """The check could not run."""


def verdict(outcome, psnr):
    """Whether a run with little memory ended as it must, and how it ended.

    `psnr` compares its image with the image that was made with all memory; None if it made no image.
    """
    if outcome.status == 0:
        if psnr is None:
            return False, "exit status 0 without an image"
        return psnr >= SAME_IMAGE, "same image" if psnr >= SAME_IMAGE else "another image"
    if outcome.status == 1 and "out of memory" in outcome.stderr:
        return True, "out of memory"
    return False, outcome.explain()


def check_ends(rows):
    """Demands an image with the most memory and none with the least: else the memory was not taken away."""
    for row, expected in ((rows[0], "same image"), (rows[-1], "out of memory")):
        if row["ok"] and row["outcome"] != expected:
            row["ok"] = False
            row["outcome"] += f", expected {expected}"


class Sweep:
    """Runs of one request on a checkpoint with little memory. `element` is the request."""

    def __init__(self, command, folder, element, device, dtype, deadline, work):
        self.command, self.folder, self.element, self.work = command, folder, element, work
        self.device, self.dtype, self.deadline = device, dtype, deadline

    def generate(self, name, **variables):
        """Generates the image; returns how the run ended and the pixels, which are None if there is no image."""
        out = self.work / f"{name}.png"
        outcome = self.command.generate(
            self.folder,
            out,
            self.element,
            device=self.device,
            dtype=self.dtype,
            timeout=self.deadline.remaining(TIMEOUT),
            **variables,
        )
        return outcome, images.read(out) if out.exists() else None

    def reference(self):
        """The image with all memory.

        Raises Failed if there is none, or if it has only one color, as an image of NaNs has.
        """
        outcome, pixels = self.generate("reference")
        if outcome.status != 0 or pixels is None:
            raise Failed(f"with all memory: {outcome.explain()}")
        if pixels.min() == pixels.max():
            raise Failed(f"with all memory: every byte of the image is {pixels.min()}")
        return pixels

    def row(self, way, size, reference, **variables):
        """One line of the table: the run with `size` bytes, taken away in a `way`."""
        row = {"way": way, "mib": size >> 20, "outcome": None, "psnr_db": None, "seconds": None, "ok": False}
        try:
            outcome, pixels = self.generate(f"{way}-{size}", **variables)
        except OutOfTime as error:
            return row | {"outcome": str(error)}
        psnr = None if pixels is None else images.psnr(pixels, reference)
        ok, text = verdict(outcome, psnr)
        return row | {"outcome": text, "psnr_db": psnr, "seconds": outcome.seconds, "ok": ok}


class Holder:
    """A program that holds the memory of a GPU, until the context ends."""

    def __init__(self, device):
        self.process = subprocess.Popen(
            [sys.executable, HOLDER, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def leave(self, size, timeout):
        """Takes all memory but `size` bytes; returns the bytes that are free.

        Raises Failed.
        """
        self.process.stdin.write(f"{size}\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise Failed("the program that holds memory did not answer")
        return int(line)


def limited(sweep, reference, sizes, facts):
    """The rows of the runs with a limit of libtorch's allocator, in bytes."""
    # Several runs at a time, if the GPU has room for them.
    workers = 3 if facts["memory_free_bytes"] > 3 * (max(sizes) + (1 << 30)) and (os.cpu_count() or 1) > 3 else 1

    def row(size):
        fraction = min(1.0, size / facts["memory_bytes"])
        return sweep.row("limit", size, reference, **{ALLOCATOR: f"per_process_memory_fraction:{fraction:.8f}"})

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(row, sizes))


def held(sweep, reference, sizes):
    """Yields the rows of the runs while another program holds all but a size, in bytes.

    Raises Failed or OutOfTime.
    """
    with Holder(sweep.device) as holder:
        for size in sizes:
            free = holder.leave(size, sweep.deadline.remaining(TIMEOUT))
            yield sweep.row("held", free, reference)


def run(part, command, folder, weights, workload, facts, deadline, quick=False):
    """Adds a row for each run to `part`. `weights` is the size of the weights in bytes.

    Raises Failed or OutOfTime.
    """
    gen_args = {"num_inference_steps": 2, "seed": 1, "height": workload["height"], "width": workload["width"]}
    element = {"prompt": "a red chair", "gen_args": gen_args}
    with tempfile.TemporaryDirectory() as work:
        sweep = Sweep(command, folder, element, workload["device"], workload["dtype"], deadline, Path(work))
        reference = sweep.reference()
        part.rows.extend(limited(sweep, reference, [int(x * weights) for x in (QUICK if quick else LIMITS)], facts))
        check_ends(part.rows)
        if not quick:
            begin = len(part.rows)
            for row in held(sweep, reference, [int(share * weights) for share in FREE]):
                part.rows.append(row)
            check_ends(part.rows[begin:])
    part.notes.append(
        f"limit: {ALLOCATOR}=per_process_memory_fraction; held: another program holds all but so much memory. "
        f"An image is the same from {SAME_IMAGE} dB."
    )

"""Images of the device against those of diffusers, and float16 on the device against float16 on the CPU.

The checkpoints are the tiny ones of the tests. A seed gives the same noise on each device, because the noise is drawn
on the CPU. It is drawn in the dtype of the latents, so float16 has other noise than float32, and other images.
"""

import concurrent.futures
import os
import tempfile
from pathlib import Path

import cases
import images
import seeded_checkpoints

# The least PSNR in dB of float32 against diffusers. One byte of 15 that differs by 1 is 60 dB.
FLOAT32_LIMIT = 60
# The least PSNR in dB of float16 against float16 on the CPU. With diffusers on the CPU and the same noise, float16 and
# float32 differed by 53 dB or more (36 cases of 3 tiny checkpoints). So two correct computations in float16 differ by
# 47 dB or more. 40 leaves room for other kernels, and finds errors of 1 % of the range of a byte.
FLOAT16_LIMIT = 40
# Seconds for one image; the first run reads gigabytes of libraries.
TIMEOUT = 120
# TF32 rounds the inputs of a convolution to 10 bits of mantissa. NVIDIA's libraries read this.
NO_TF32 = {"NVIDIA_TF32_OVERRIDE": "0"}


class Failed(Exception):
    """A run of the command did not give an image."""


def generate(command, checkpoint, element, out, device, dtype, deadline):
    """The image of a case as pixels.

    Raises Failed or OutOfTime.
    """
    outcome = command.generate(
        checkpoint, out, element, device=device, dtype=dtype, timeout=deadline.remaining(TIMEOUT), **NO_TF32
    )
    if outcome.status != 0:
        raise Failed(f"{dtype} on {device}: {outcome.explain()}")
    return images.read(out)


def compare(command, device, checkpoint, case, tensors, work, deadline):
    """The PSNRs of one case in dB. On the CPU there is none for float16, which would be compared with itself."""
    name, golden = case["name"].replace("/", "-"), cases.expected(case, tensors)
    element = cases.with_files(case, tensors, work)

    def image(where, dtype):
        out = work / f"{name}-{where.replace(':', '')}-{dtype}.png"
        return generate(command, checkpoint, element, out, where, dtype, deadline)

    row = {"float32_db": images.psnr(image(device, "float32"), golden), "float16_db": None}
    if device != "cpu":
        row["float16_db"] = images.psnr(image(device, "float16"), image("cpu", "float16"))
    return row


def verdict(row):
    """Whether the PSNRs of a row are high enough; a PSNR that was not measured is."""
    float16 = row["float16_db"]
    return row["float32_db"] >= FLOAT32_LIMIT and (float16 is None or float16 >= FLOAT16_LIMIT)


def run(part, command, device, deadline, quick=False):
    """Adds a row for each case to `part`."""
    checkpoints = seeded_checkpoints.write()
    # Loading CUDA's libraries takes most of the time of a run. On the CPU a run uses all cores.
    workers = max(1, min(4, (os.cpu_count() or 1) // 2)) if device != "cpu" else 1

    def row_of(pipeline, case, tensors, work):
        row = {"pipeline": pipeline, "case": case["name"]}
        try:
            numbers = compare(command, device, checkpoints / case["checkpoint"], case, tensors, work, deadline)
        except Exception as error:
            return row | {"float32_db": None, "float16_db": None, "ok": False, "note": str(error)}
        return row | numbers | {"ok": verdict(numbers), "note": None}

    with tempfile.TemporaryDirectory() as work, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(row_of, *each, Path(work)) for each in cases.load(quick)]
        part.rows.extend(future.result() for future in futures)
    part.notes.append(
        f"PSNR in dB. float32_db: {device} against diffusers, at least {FLOAT32_LIMIT}. "
        f"float16_db: {device} against the CPU, at least {FLOAT16_LIMIT}."
    )

"""The time of a step with guidance, next to an eager PyTorch implementation of the same UNet."""

import benchmark
from budget import OutOfTime


def row(images, ours, eager):
    """One line of the table: times in milliseconds, `ratio` is eager divided by ours, memory in MiB."""
    if ours is None:
        times = dict.fromkeys(("prepare_ms", "first_step_ms", "step_ms", "finish_ms"))
    else:
        times = {key: float(ours[key]) for key in ("prepare_ms", "first_step_ms", "step_ms", "finish_ms")}
    memory = ours and ours.get("memory_used_bytes")
    eager_ms = eager and eager["step_ms"]
    return {
        "images": images,
        **times,
        "eager_step_ms": eager_ms,
        "ratio": eager_ms / times["step_ms"] if eager_ms and times["step_ms"] else None,
        "ms_per_image": times["step_ms"] / images if times["step_ms"] else None,
        "memory_mib": memory and memory >> 20,
        "ok": True,
        "note": "out of memory" if ours is None else None,
    }


def run(part, command, folder, workload, deadline, eager=True):
    """Adds a row for each number of images to `part`. `eager` says whether this Python has PyTorch.

    Raises benchmark.Failed or OutOfTime if the command's benchmark did not run.
    """
    result, ours = benchmark.of_command(command, folder, workload, deadline)
    theirs = {}
    if eager:
        try:
            theirs = benchmark.of_eager(folder, workload, command.environment, deadline)
        except (benchmark.Failed, OutOfTime) as error:
            part.error = str(error)
    else:
        part.notes.append("no eager times: this Python has no PyTorch of the command's version")
    for images in workload["images"]:
        part.rows.append(row(images, ours.get(images), theirs.get(images)))
    mib = result["weights_bytes"] / 2**20
    part.notes.append(f"loaded {mib:.0f} MiB of weights in {result['load_seconds']:.2f} s; ratio: eager / command")

"""A lost GPU: after an error that CUDA cannot recover from, the command must end with an error, not by a signal.

The command is a test build, which `make gpu-check` makes: its `benchmark` has an option that lets a kernel fail.
"""

# Seconds for one run.
TIMEOUT = 90
# What the command says of a GPU that failed.
MESSAGE = "GPU {index} failed"


def verdict(outcome, index):
    """Whether a run on a GPU that failed ended as it must, and how it ended."""
    if outcome.status == 1 and MESSAGE.format(index=index) in outcome.stderr:
        return True, "the error names the GPU"
    return False, outcome.explain()


def run(part, command, folder, workload, deadline):
    """Adds a row for the run to `part`.

    Raises OutOfTime.
    """
    index = workload["device"].removeprefix("cuda:")
    arguments = [
        "--device",
        workload["device"],
        "--dtype",
        workload["dtype"],
        "--steps",
        "5",
        "--lose-device",
        "--json",
    ]
    outcome = command.run("benchmark", folder, *arguments, timeout=deadline.remaining(TIMEOUT))
    ok, text = verdict(outcome, index)
    part.rows.append({"fault": "an index beyond a table", "outcome": text, "seconds": outcome.seconds, "ok": ok})

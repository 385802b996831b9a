"""Compares a UNet step and a decode of the VAE: this backend, diffusers and OpenVINO, all in float32.

    .venv/bin/python benches/parts.py --checkpoint full_size --side 512

In each round every contender runs once, in a separate process, one after the other. A step is a UNet call with two
batch entries and guidance; for this backend it has the scheduler too, and the decode has the conversion to bytes. The
value of a round is the mean of its steps.
"""

import argparse
import pathlib
import statistics
import sys

import checkpoints
import comparison
import process
import results
from python_backend import ROOT

CONTENDERS = ("exact", "fast", "diffusers", "openvino")
BENCHES = ROOT / "benches"


def ours(numerics: str, checkpoint: pathlib.Path, arguments: argparse.Namespace) -> tuple[float, float, int]:
    """Returns the seconds of a step and of a decode in this backend, and the peak memory in bytes."""
    # The command does not count its first two steps.
    run, peak = process.ours(numerics, checkpoint, side=arguments.side, steps=arguments.steps + 2)
    return run["step_ms"] / 1000, run["finish_ms"] / 1000, peak


def peer(name: str, checkpoint: pathlib.Path, arguments: argparse.Namespace) -> tuple[float, float, int]:
    """Returns the same of a peer."""
    words = [checkpoint, f"--side={arguments.side}", f"--steps={arguments.steps}"]
    run, peak = process.run(name, [arguments.bench_venv / "bin" / "python", BENCHES / f"peer_{name}.py", *words])
    return statistics.mean(run["step_s"]), statistics.mean(run["decode_s"]), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "parts", 3)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="full_size")
    parser.add_argument("--side", type=int, default=512, help="height and width in pixels [default: 512]")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a round [default: 2]")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="some of " + ",".join(CONTENDERS))
    arguments = parser.parse_args()

    chosen = arguments.contenders.split(",")
    checkpoint = checkpoints.get(arguments.checkpoint)
    if "openvino" in chosen:
        python = arguments.bench_venv / "bin" / "python"
        convert = [python, BENCHES / "peer_openvino.py", checkpoint, f"--side={arguments.side}", "--convert"]
        for part, difference in process.run("convert", convert)[0].items():
            print(f"converted {part}: largest difference from diffusers {difference:.1e} of the largest value")
    parts = {"UNet step": {}, "VAE decode": {}}
    peaks = {}
    for number in range(arguments.rounds):
        for name in chosen:
            measure = ours if name in ("exact", "fast") else peer
            *times, peak = measure(name, checkpoint, arguments)
            for samples, value in zip(parts.values(), times, strict=True):
                samples.setdefault(name, []).append(value)
            peaks[name] = max(peak, peaks.get(name, 0))
            print(f"round {number + 1}, {name}: step {times[0]:.3f} s, decode {times[1]:.3f} s", file=sys.stderr)

    settings = {"checkpoint": arguments.checkpoint, "side": arguments.side, "steps": arguments.steps}
    rows = [{"what": what, "samples": samples} for what, samples in parts.items()]
    for row in rows:
        print(f"{row['what']}, {arguments.checkpoint}, {arguments.side}x{arguments.side}")
        print("\n".join(comparison.lines(row["samples"], "s")))
    results.save(arguments, "parts", settings, rows, peak_bytes=peaks)


if __name__ == "__main__":
    main()

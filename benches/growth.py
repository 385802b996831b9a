"""Measures how time and peak memory of this backend grow: with pixels, with the batch size, with steps.

    .venv/bin/python benches/growth.py --checkpoint full_size

Each measurement is one run of `triton-diffusion benchmark` in a separate process; `peak_bytes` is the largest memory
that the process had (VmHWM). The command does not count the first two steps in the time of a step.
"""

import argparse
import pathlib
import sys

import checkpoints
import process
import results

SIDES = "256,384,512,768,1024"
IMAGES = "1,2,4,8"
STEPS = "5,10,20"


def measure(arguments: argparse.Namespace, checkpoint: pathlib.Path, *, side: int, steps: int, images: int) -> dict:
    """Returns the times in seconds and the peak memory of one run."""
    run, peak = process.ours(arguments.numerics, checkpoint, side=side, steps=steps, images=images)
    point = {
        "side": side,
        "steps": steps,
        "images": images,
        "step_s": run["step_ms"] / 1000,
        "decode_s": run["finish_ms"] / 1000,
        "request_s": (run["prepare_ms"] + run["step_ms"] * steps + run["finish_ms"]) / 1000,
        "peak_bytes": peak,
    }
    times = ", ".join(f"{part} {point[f'{part}_s']:.3f} s" for part in ("step", "decode", "request"))
    peak_text = f"peak {peak / 2**30:.2f} GiB"
    print(f"{side}x{side}, {images} images, {steps} steps: {times}, {peak_text}", file=sys.stderr)
    return point


def numbers(text: str) -> list[int]:
    """Reads numbers with commas between them."""
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "growth", 1)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="full_size")
    parser.add_argument("--numerics", choices=("exact", "fast"), default="fast")
    parser.add_argument("--sides", type=numbers, default=SIDES, help=f"heights and widths [default: {SIDES}]")
    parser.add_argument("--images", type=numbers, default=IMAGES, help=f"numbers of images [default: {IMAGES}]")
    parser.add_argument("--steps", type=numbers, default=STEPS, help=f"numbers of steps [default: {STEPS}]")
    parser.add_argument("--side", type=int, default=256, help="pixels while images and steps grow [default: 256]")
    arguments = parser.parse_args()

    checkpoint = checkpoints.get(arguments.checkpoint)
    fewest = 4
    series = {
        "pixels": [dict(side=side, steps=fewest, images=1) for side in arguments.sides],
        "images": [dict(side=arguments.side, steps=fewest, images=images) for images in arguments.images],
        "steps": [dict(side=arguments.side, steps=steps, images=1) for steps in arguments.steps],
    }
    rows = [
        {
            "what": what,
            "points": [measure(arguments, checkpoint, **point) for point in points for _ in range(arguments.rounds)],
        }
        for what, points in series.items()
    ]
    settings = {"checkpoint": arguments.checkpoint, "numerics": arguments.numerics, "side": arguments.side}
    results.save(arguments, "growth", settings, rows)


if __name__ == "__main__":
    main()

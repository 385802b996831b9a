"""Finds the flags with which stable-diffusion.cpp is fastest on this machine.

    .venv/bin/python benches/stable_diffusion_cpp_flags.py --side 256

Types of weights that lose precision are left out. The fastest flags belong into BEST of peer_stable_diffusion_cpp.py.
"""

import argparse
import sys

import checkpoints
import process
import results
from python_backend import ROOT

PEER = ROOT / "benches" / "peer_stable_diffusion_cpp.py"
CHOICES = ("f16", "f32", "f16,flash", "f32,flash", "f32,flash,vae-direct", "f32,flash,unet-direct,vae-direct")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "stable_diffusion_cpp_flags", 1)
    parser.add_argument("--side", type=int, default=512, help="height and width in pixels [default: 512]")
    parser.add_argument("--steps", type=int, default=1, help="steps of each image [default: 1]")
    parser.add_argument("--flags", nargs="+", default=CHOICES, help="sets of flags to try")
    arguments = parser.parse_args()

    checkpoint = checkpoints.get("full_size")
    samples = {part: {flags: [] for flags in arguments.flags} for part in ("step", "decode")}
    for _ in range(arguments.rounds):
        for flags in arguments.flags:
            words = [f"--side={arguments.side}", f"--steps={arguments.steps}", f"--flags={flags}"]
            run, _ = process.run("sdcpp", [arguments.bench_venv / "bin" / "python", PEER, checkpoint, *words])
            samples["step"][flags] += run["step_s"]
            samples["decode"][flags] += run["decode_s"]
            print(f"{flags}: step {run['step_s'][0]:.2f} s, decode {run['decode_s'][0]:.2f} s", file=sys.stderr)

    rows = [{"what": part, "samples": of_part} for part, of_part in samples.items()]
    settings = {"checkpoint": "full_size", "side": arguments.side, "steps": arguments.steps}
    results.save(arguments, "flags", settings, rows)


if __name__ == "__main__":
    main()

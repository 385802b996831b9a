"""Checks this backend on a GPU: `python3 tools/gpu_check`, or `make gpu-check`. No network is needed.

The parts are: correctness (images of the tiny checkpoints against diffusers), weights (makes a checkpoint of the shapes
of Stable Diffusion 2.1), speed (time of a step, next to eager PyTorch), memory (out of memory), fault (a lost GPU). The
exit status is 1 if a check failed, and 2 if the check could not start.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import correctness
    import fault
    import full_size
    import memory
    import speed
except ImportError as error:
    print(f"gpu_check needs numpy, Pillow and safetensors: {error}", file=sys.stderr)
    sys.exit(2)
import libraries
import seeded_checkpoints
from budget import ENDS, Deadline
from command import Command, run
from report import Part, describe, to_json

FACTS = Path(__file__).with_name("gpu_facts.py")
DEFAULT_COMMAND = libraries.ROOT / "dist" / "bin" / "triton-diffusion"
TEST_COMMAND = DEFAULT_COMMAND.with_name("triton-diffusion-failpoints")
FULL_SIZE = libraries.ROOT / "target" / "gpu_check" / "sd21"


class CannotStart(Exception):
    """Something is missing on this machine."""


def arguments(argv):
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu for what needs no GPU")
    parser.add_argument(
        "--command", type=Path, help="the command [default: dist/bin/triton-diffusion, else its test build]"
    )
    parser.add_argument("--test-command", type=Path, default=TEST_COMMAND, help="the command with failures to arm")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the results to a file")
    parser.add_argument("--quick", action="store_true", help="fewer cases, one image, few limits of memory")
    parser.add_argument("--parts", help=f"some of {','.join(ENDS)}")
    parser.add_argument("--minutes", type=float, default=8.5, help="the time for all parts [default: 8.5]")
    parser.add_argument("--checkpoint", type=Path, help="measure this checkpoint of Stable Diffusion 1 or 2")
    parser.add_argument("--dtype", help="of speed and memory [default: float16, on the CPU float32]")
    parser.add_argument("--images", help="numbers of images of speed [default: 1,2,4,8]")
    parser.add_argument("--steps", type=int, help="steps that speed measures [default: 20]")
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args(argv)
    if options.command is None:
        # On a machine to which little can be carried, the test build serves as both.
        only_test = options.test_command.is_file() and not DEFAULT_COMMAND.is_file()
        options.command = options.test_command if only_test else DEFAULT_COMMAND
    chosen = options.parts.split(",") if options.parts else list(ENDS)
    if unknown := [name for name in chosen if name not in ENDS]:
        parser.error(f"--parts: expected some of {','.join(ENDS)}, got {unknown[0]}")
    options.chosen = [name for name in ENDS if name in chosen]
    return options


class Check:
    """The parts of the check with what they share."""

    def __init__(self, options):
        self.options = options
        self.gpu = options.device != "cpu"
        self.folder = libraries.torch_folder()
        self.command = Command(options.command.absolute(), libraries.environment(options.device, self.folder))
        self.begin = time.monotonic()
        dtype = options.dtype or ("float16" if self.gpu else "float32")
        images = options.images or ("1" if options.quick else "1,2,4,8")
        self.workload = {
            "device": options.device,
            "dtype": dtype,
            "images": [int(count) for count in images.split(",")],
            "steps": options.steps or (5 if options.quick else 20),
            "height": options.height,
            "width": options.width,
        }
        self.checkpoint = options.checkpoint
        self.facts = self.find_facts()

    def find_facts(self):
        """What is known about the command and the machine.

        Raises CannotStart if the command does not run, or if PyTorch does not find the GPU.
        """
        if not self.command.path.is_file():
            raise CannotStart(f"{self.command.path} is missing: run 'make backend', or name it with --command")
        if self.gpu and self.folder is None:
            have = libraries.installed_version() or "none"
            raise CannotStart(
                f"expected a Python with PyTorch {libraries.expected_version()} for CUDA, got {have}: "
                "set GPU_PYTHON to such a Python"
            )
        version = self.command.run("--version", timeout=60)
        if version.status != 0:
            raise CannotStart(f"{self.command.path}: {version.explain()}")
        facts = {"device": self.options.device, "command": version.stdout.strip()}
        if not self.gpu:
            return facts
        found = run([sys.executable, FACTS, self.options.device], self.command.environment, 120)
        if found.status != 0:
            raise CannotStart(f"PyTorch finds no GPU {self.options.device}: {found.explain()}")
        return facts | json.loads(found.stdout)

    def deadline(self, name):
        return Deadline(self.begin + ENDS[name] * self.options.minutes * 60 - time.monotonic())

    def needs_gpu(self, name):
        """Whether a part is left out on the CPU; speed runs there if it is asked for by name."""
        return not self.gpu and name != "correctness" and (name in ("memory", "fault") or self.options.parts is None)

    def run(self, name):
        """Runs one part. What goes wrong in it is its error, and the other parts go on."""
        part, begin = Part(name), time.monotonic()
        if self.needs_gpu(name):
            part.skipped = "needs a GPU"
        else:
            try:
                getattr(self, name)(part)
            except Exception as error:
                part.error = f"{type(error).__name__}: {error}"
        part.seconds = time.monotonic() - begin
        return part

    def correctness(self, part):
        deadline = self.deadline("correctness")
        correctness.run(part, self.command, self.options.device, deadline, self.options.quick)

    def weights(self, part):
        if self.options.checkpoint:
            part.skipped = f"--checkpoint names {self.options.checkpoint}"
            return
        self.make_checkpoint()
        part.notes.append(f"{self.checkpoint}: {self.weights_bytes() / 2**20:.0f} MiB")

    def make_checkpoint(self):
        """Makes the full-size checkpoint, unless there is one or the user named one."""
        if self.checkpoint is None:
            full_size.write(FULL_SIZE, seeded_checkpoints.write() / "sd2_base")
            self.checkpoint = FULL_SIZE
        return self.checkpoint

    def weights_bytes(self):
        return sum(file.stat().st_size for file in self.make_checkpoint().glob("*/*.safetensors"))

    def speed(self, part):
        eager = self.folder is not None
        speed.run(part, self.command, self.make_checkpoint(), self.workload, self.deadline("speed"), eager)

    def memory(self, part):
        folder, size = self.make_checkpoint(), self.weights_bytes()
        deadline, quick = self.deadline("memory"), self.options.quick
        memory.run(part, self.command, folder, size, self.workload, self.facts, deadline, quick)

    def fault(self, part):
        path = self.options.test_command.absolute()
        if not path.is_file():
            part.skipped = f"{path} is missing: 'make gpu-check' builds it"
            return
        command = Command(path, self.command.environment)
        folder = seeded_checkpoints.write() / "sd2_base"
        fault.run(part, command, folder, self.workload, self.deadline("fault"))


def main(argv=None):
    options = arguments(argv)
    try:
        check = Check(options)
    except CannotStart as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{key}: {value}" for key, value in check.facts.items()) + "\n", flush=True)
    parts = []
    for name in options.chosen:
        parts.append(check.run(name))
        print(describe(parts[-1]), flush=True)
        seconds = time.monotonic() - check.begin
        # After each part, so that a check that is stopped leaves its results.
        if options.json:
            facts = check.facts | {"workload": check.workload, "seconds": seconds}
            options.json.write_text(to_json(facts, parts))
    passed = all(part.passed for part in parts)
    print(f"gpu_check: {'ok' if passed else 'FAILED'} ({seconds:.0f} s)")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())

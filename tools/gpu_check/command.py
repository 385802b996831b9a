"""Runs the command triton-diffusion."""

import dataclasses
import json
import subprocess
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended. `status` is the exit status, negative for a signal, or None if the time was over."""

    status: int | None
    stdout: str
    stderr: str
    seconds: float

    def explain(self):
        """How the run ended, with the last line of its errors."""
        lines = self.stderr.strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        if self.status is None:
            return f"stopped after {self.seconds:.0f} s{last}"
        if self.status < 0:
            return f"signal {-self.status}{last}"
        return f"exit status {self.status}{last}"


def run(arguments, environment, timeout):
    """Runs a program for `timeout` seconds at most; returns an Outcome."""
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [str(argument) for argument in arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )
        status, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as stopped:
        status, stdout, stderr = None, stopped.stdout or b"", stopped.stderr or b""
    seconds = time.monotonic() - begin
    return Outcome(status, stdout.decode(errors="replace"), stderr.decode(errors="replace"), seconds)


@dataclasses.dataclass(frozen=True)
class Command:
    """The command and the environment in which it finds its libraries."""

    path: Path
    environment: dict

    def run(self, *arguments, timeout, **variables):
        """Runs the command with further environment variables."""
        return run([self.path, *arguments], self.environment | variables, timeout)

    def generate(self, folder, out, element, *, device, dtype, timeout, **variables):
        """Generates the image of one batch element.

        `element` has `prompt`, `gen_args` and, where they are not None, `negative_prompt`, `image`, `mask_image` and
        `depth_map`; the last three are files.
        """
        arguments = ["generate", folder, f"--prompt={element['prompt']}", "--out", out, "--device", device]
        arguments += ["--dtype", dtype, "--gen-args", json.dumps(element["gen_args"])]
        for key in ("negative_prompt", "image", "mask_image", "depth_map"):
            if element.get(key) is not None:
                arguments.append(f"--{key.replace('_', '-')}={element[key]}")
        return self.run(*arguments, timeout=timeout, **variables)

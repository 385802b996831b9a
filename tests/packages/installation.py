"""Shared by the tests of the packages: runs commands, builds the packages, and installs the wheel."""

import os
import pathlib
import subprocess
import sys
import sysconfig

ROOT = pathlib.Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
# The packages of libtorch: the CUDA libraries that libtorch_cpu.so links are in `nvidia`.
LIBTORCH = ("torch", "nvidia")


def run(*command, folder=ROOT, status=0):
    """Runs a command without the variables that show a process where libraries are; returns its output."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def build(tool, folder, *arguments):
    """Runs a tool of tools/; returns the file that it wrote to `folder`."""
    run(sys.executable, ROOT / "tools" / tool, "--out", folder, *arguments)
    (file,) = folder.iterdir()
    return file


class Environment:
    """A virtual environment with the wheel."""

    def __init__(self, folder, wheel):
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.folder, self.python, self.command = folder, folder / "bin" / "python", folder / "bin" / "triton-diffusion"
        self.packages = pathlib.Path(
            run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('platlib'))")[:-1]
        )
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
        run(*pip, "--python", self.python, "install", "--no-deps", "--no-index", wheel)

    def add_libtorch(self):
        """Links the packages of libtorch, as if pip had installed them here."""
        of_this_python = pathlib.Path(sysconfig.get_path("platlib"))
        information = [path.name for path in of_this_python.glob("torch-*.dist-info")]
        for name in [*LIBTORCH, *information]:
            (self.packages / name).symlink_to(of_this_python / name)

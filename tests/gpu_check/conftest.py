"""Tests of tools/gpu_check that need no GPU and no PyTorch."""

import pathlib
import stat
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(ROOT / "tools" / "gpu_check"))


@pytest.fixture
def script(tmp_path):
    """Returns a function that writes a Python program in place of the command; returns its path."""

    def write(text):
        file = tmp_path / "triton-diffusion"
        file.write_text(f"#!{sys.executable}\n{text}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    return write

"""Tests of what the repository holds, and of the tools that generate what it does not hold."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

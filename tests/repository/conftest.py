"""Tests of what the repository holds, of the tools that generate what it does not hold, and of the benches' report."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "benches"))

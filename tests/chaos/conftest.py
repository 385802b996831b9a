"""Uses the helpers of the end-to-end tests."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import seeded_checkpoints


def pytest_sessionstart(session):
    if not session.config.option.collectonly:
        seeded_checkpoints.write()

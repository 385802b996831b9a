"""Fixtures: the wheel and the archive, built from dist/ and installed in temporary folders."""

import pathlib
import sys
import tarfile

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import seeded_checkpoints
from installation import DIST, Environment, build


def pytest_sessionstart(session):
    library = DIST / "backends" / "diffusion" / "libtriton_diffusion.so"
    if not session.config.option.collectonly and not library.exists():
        pytest.exit(f"{library} is missing: run 'make backend'", returncode=3)
    if not session.config.option.collectonly:
        seeded_checkpoints.write()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Returns the file of the wheel."""
    return build("build_wheel.py", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Returns the file of the archive, which is written fast: without compression."""
    return build("build_archive.py", tmp_path_factory.mktemp("archive"), "--compression", 0)


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory):
    """Returns an environment with the wheel and libtorch."""
    made = Environment(tmp_path_factory.mktemp("environment"), wheel)
    made.add_libtorch()
    return made


@pytest.fixture(scope="session")
def backends(archive, tmp_path_factory):
    """Returns a folder of backends in which the archive is unpacked."""
    folder = tmp_path_factory.mktemp("backends")
    # Python 3.11.2 of Debian 12 has no filters.
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(archive) as opened:
        opened.extractall(folder, **safe)
    return folder

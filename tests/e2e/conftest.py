"""Fixtures: a model repository and a real tritonserver for each test module."""

import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import seeded_checkpoints
import server as triton
import support


def pytest_sessionstart(session):
    library = triton.BACKENDS / "diffusion" / "libtriton_diffusion.so"
    if not session.config.option.collectonly and not library.exists():
        pytest.exit(f"{library} is missing: run 'make backend'", returncode=3)
    if not session.config.option.collectonly:
        seeded_checkpoints.write()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Returns an empty model repository; see support.Repository."""
    return support.Repository(tmp_path_factory.mktemp("model_repository"))


@pytest.fixture(scope="session")
def loopback_bind(tmp_path_factory):
    """Builds a library that binds the SageMaker front end to loopback; Triton has no option for that."""
    source = pathlib.Path(__file__).with_name("loopback_bind.c")
    library = tmp_path_factory.mktemp("preload") / "libloopback_bind.so"
    command = ["cc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Returns the folder of checkpoints that models name by their digests; empty."""
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def server(repository, bases, tmp_path_factory, loopback_bind):
    """Runs a tritonserver on loopback that serves `repository`, with no model loaded."""
    log = tmp_path_factory.mktemp("log") / "tritonserver.log"
    environment = {
        # These tests run on the CPU; without this, a configuration without a device would use a GPU.
        "CUDA_VISIBLE_DEVICES": "",
        # The backend must find its libraries without this variable.
        "LD_LIBRARY_PATH": None,
        "LD_PRELOAD": loopback_bind,
        "TRITON_DIFFUSION_BASES": bases,
    }
    running = triton.TritonServer(repository.folder, log, environment=environment, sagemaker=True)
    with running:
        yield running
        assert running.is_alive(), f"the server stopped during the tests:\n{running.log()[-4000:]}"


@pytest.fixture(scope="module")
def client(server):
    """Sends requests to `server` over gRPC and HTTP; see support.Client."""
    with support.Client(server) as connected:
        yield connected

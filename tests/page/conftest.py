"""Fixtures: a real tritonserver, the gateway in front of it, and its page in Chromium."""

import json
import os
import pathlib
import sys

import pytest
from playwright.sync_api import expect, sync_playwright

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import seeded_checkpoints
import server as triton
import support
from app import App
from gateway import Gateway

DECOUPLED = "model_transaction_policy { decoupled: true }\n"
GOLDENS = support.ROOT / "tests" / "data" / "goldens"
# The model with everything: text to image, image to image, inpainting, previews, LoRAs and words of embeddings.
TINY = "tiny"
MODELS = (TINY, "depth", "upscale", "plain")


# Milliseconds: enough for a machine with much other work.
expect.set_options(timeout=20_000)


def pytest_sessionstart(session):
    library = triton.BACKENDS / "diffusion" / "libtriton_diffusion.so"
    if not session.config.option.collectonly and not library.exists():
        pytest.exit(f"{library} is missing: run 'make backend'", returncode=3)
    if not session.config.option.collectonly:
        seeded_checkpoints.write()


def add_adapters(model):
    """Writes a LoRA and an embedding of the goldens into the folders of a model of sd1."""
    for golden, path, target in (
        ("adapters", "sd1-kohya.safetensors", "loras/style.safetensors"),
        ("textual_inversion", "embeddings/a-toy.safetensors", "embeddings/a-toy.safetensors"),
    ):
        files = json.loads((GOLDENS / f"{golden}.json").read_text())["files"]
        content = next(file["content"] for file in files if file["path"] == path)
        (model / "1" / target).parent.mkdir()
        (model / "1" / target).write_bytes(seeded_checkpoints.weights(content))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Runs a tritonserver with MODELS."""
    repository = support.Repository(tmp_path_factory.mktemp("model_repository"))
    add_adapters(repository.add(TINY, support.config() + DECOUPLED, support.CHECKPOINTS / "sd1"))
    repository.add("depth", support.config() + DECOUPLED, support.CHECKPOINTS / "sd2_depth")
    repository.add("upscale", support.config() + DECOUPLED, support.CHECKPOINTS / "x4_upscaler")
    repository.add("plain", support.config())
    log = tmp_path_factory.mktemp("log") / "tritonserver.log"
    environment = {"CUDA_VISIBLE_DEVICES": "", "LD_LIBRARY_PATH": None}
    with triton.TritonServer(repository.folder, log, models=MODELS, environment=environment) as running:
        yield running
        assert running.is_alive(), f"the server stopped during the tests:\n{running.log()[-4000:]}"


@pytest.fixture(scope="session")
def gateway(server):
    """Runs the gateway."""
    with Gateway(server.grpc_address) as running:
        yield running


@pytest.fixture(scope="session")
def browser():
    """Starts Chromium, the program that the variable CHROMIUM names. Its sandbox does not work for root."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()


@pytest.fixture
def open_page(browser, gateway):
    """Returns a function that opens the page in a new profile, with options of playwright's contexts.

    At the end it checks that each page made requests to its gateway only, and wrote no error to the console.
    """
    contexts, apps = [], []

    def opened(url=None, **options):
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(20_000)
        apps.append(App(contexts[-1].new_page(), url or gateway.url.removesuffix("v1")))
        return apps[-1]

    yield opened
    for app in apps:
        app.check()
    for context in contexts:
        context.close()


@pytest.fixture
def app(open_page):
    """Opens the page on a screen of a desktop."""
    return open_page(viewport={"width": 1280, "height": 900}).opened()

"""Eight clients load, infer and unload at random: every response is the expected image or a clear error.

A model is loaded and asked for an image before anyone may unload it or load it again. Triton 2.51 can end with a
segmentation fault when a model is destroyed so soon after its load that the thread of its instance has not yet begun
to wait for requests. This happens on a busy machine and with any backend: `StopBackendThread` takes the last instance
of a list that is still empty (src/backend_model_instance.cc of triton-inference-server/core). A response proves that
the thread works.

TRITON_DIFFUSION_SOAK_SECONDS sets the duration; `make soak` takes five minutes.
"""

import os
import random
import re
import threading
import time

import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from client import to_base64
from support import CHECKPOINTS, check_harmless, open_image, waves

SECONDS = float(os.environ.get("TRITON_DIFFUSION_SOAK_SECONDS", "15"))
CLIENTS = 8
MODELS = {
    "soak_base": ("sd2_base", {}),
    "soak_sd1": ("sd1", {}),
    "soak_depth": ("sd2_depth", {"image": to_base64(waves(64, 64))}),
    "soak_upscale": ("x4_upscaler", {"image": to_base64(waves(32, 32))}),
}
ARGUMENTS = [{"num_inference_steps": steps, "seed": steps} for steps in (2, 3, 5)]
# Triton's errors for a model that other clients load or unload at the same time.
TRANSITION = re.compile(
    r"unknown model|is not ready|not found|has no available versions|unloading|unloaded|in transition|"
    r"failed to (un)?load|busy|unavailable",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def expected(client, repository):
    """Generates the image of each model with each of ARGUMENTS, one request at a time."""
    expected = {}
    for name, (checkpoint, images) in MODELS.items():
        repository.add(name, checkpoint=CHECKPOINTS / checkpoint)
        client.load(name)
        for number, gen_args in enumerate(ARGUMENTS):
            expected[name, number] = client.infer(name, prompt="a cat", gen_args=gen_args, **images).image
        client.http.unload_model(name)
    return expected


class Soaking:
    """One client: acts at random and counts the outcomes."""

    def __init__(self, number, server, client, expected, until, control):
        self.random = random.Random(number)
        self.server, self.client, self.expected, self.until = server, client, expected, until
        self.images, self.errors, self.wrong = 0, 0, []
        self.control = control

    def run(self):
        with InferenceServerClient(self.server.http_address, network_timeout=120.0, connection_timeout=120.0) as http:
            while time.monotonic() < self.until and not self.wrong:
                model = self.random.choice(list(MODELS))
                try:
                    self.act(http, model)
                except InferenceServerException as error:
                    self.errors += 1
                    check_harmless(error.message())
                    if not TRANSITION.search(error.message()):
                        self.wrong.append(error.message())
                except Exception as error:  # the test reports it
                    self.wrong.append(repr(error))

    def act(self, http, model):
        kind = self.random.random()
        if kind < 0.2:
            with self.control[model]:
                http.load_model(model)
                self.infer(model)
        elif kind < 0.3:
            with self.control[model]:
                http.unload_model(model)
        else:
            self.infer(model)

    def infer(self, model):
        number = self.random.randrange(len(ARGUMENTS))
        response = self.client.infer(model, prompt="a cat", gen_args=ARGUMENTS[number], **MODELS[model][1])
        self.images += 1
        if open_image(response.image).tobytes() != open_image(self.expected[model, number]).tobytes():
            self.wrong.append(f"{model}: another image")


def test_random_loads_requests_and_unloads(server, client, expected, capsys):
    until = time.monotonic() + SECONDS
    control = {model: threading.Lock() for model in MODELS}
    clients = [Soaking(number, server, client, expected, until, control) for number in range(CLIENTS)]
    threads = [threading.Thread(target=each.run) for each in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [words for each in clients for words in each.wrong]
    images, errors = sum(each.images for each in clients), sum(each.errors for each in clients)
    with capsys.disabled():
        print(f"\n{SECONDS:.0f} s, {CLIENTS} clients: {images} images, {errors} errors, {len(wrong)} wrong")
    assert not wrong, wrong
    assert images > 0
    # Afterwards every model still loads and generates its image.
    for name, (_, images) in MODELS.items():
        client.load(name)
        response = client.infer(name, prompt="a cat", gen_args=ARGUMENTS[0], **images)
        assert open_image(response.image).tobytes() == open_image(expected[name, 0]).tobytes()
        client.http.unload_model(name)

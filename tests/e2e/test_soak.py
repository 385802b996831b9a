"""Eight clients load, infer and unload at random: every answer is the right picture or a clear error.

TRITON_DIFFUSION_SOAK_SECONDS says for how long; `make soak` takes five minutes.
"""

import os
import random
import re
import threading
import time

import pytest
from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException

from support import CHECKPOINTS, check_harmless, opened, sent, waves

SECONDS = float(os.environ.get("TRITON_DIFFUSION_SOAK_SECONDS", "15"))
CLIENTS = 8
MODELS = {
    "soak_base": ("sd2_base", {}),
    "soak_sd1": ("sd1", {}),
    "soak_depth": ("sd2_depth", {"image": sent(waves(64, 64))}),
    "soak_upscale": ("x4_upscaler", {"image": sent(waves(32, 32))}),
}
ARGUMENTS = [{"num_inference_steps": steps, "seed": steps} for steps in (2, 3, 5)]
# What a client may be told while others load and unload the same models. Triton's own words.
TRANSITION = re.compile(
    r"unknown model|is not ready|not found|has no available versions|unloading|unloaded|in transition|"
    r"failed to (un)?load|busy|unavailable",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def right(client, repository):
    """The picture of each model and each of ARGUMENTS, made alone."""
    pictures = {}
    for name, (checkpoint, images) in MODELS.items():
        repository.add(name, checkpoint=CHECKPOINTS / checkpoint)
        client.load(name)
        for number, gen_args in enumerate(ARGUMENTS):
            pictures[name, number] = client.infer(name, prompt="a cat", gen_args=gen_args, **images).picture
        client.http.unload_model(name)
    return pictures


class Soaking:
    """One client and what it has seen."""

    def __init__(self, number, server, client, right, until):
        self.random, self.server, self.client, self.right, self.until = (
            random.Random(number),
            server,
            client,
            right,
            until,
        )
        self.pictures, self.refusals, self.wrong = 0, 0, []

    def run(self):
        with InferenceServerClient(self.server.http_address, network_timeout=120.0, connection_timeout=120.0) as http:
            while time.monotonic() < self.until and not self.wrong:
                model = self.random.choice(list(MODELS))
                try:
                    self.act(http, model)
                except InferenceServerException as error:
                    self.refusals += 1
                    check_harmless(error.message())
                    if not TRANSITION.search(error.message()):
                        self.wrong.append(error.message())
                except Exception as error:  # whatever it is, the test names it
                    self.wrong.append(repr(error))

    def act(self, http, model):
        kind = self.random.random()
        if kind < 0.2:
            http.load_model(model)
        elif kind < 0.3:
            http.unload_model(model)
        else:
            number = self.random.randrange(len(ARGUMENTS))
            answer = self.client.infer(model, prompt="a cat", gen_args=ARGUMENTS[number], **MODELS[model][1])
            self.pictures += 1
            if opened(answer.picture).tobytes() != opened(self.right[model, number]).tobytes():
                self.wrong.append(f"{model}: another picture")


def test_random_loads_requests_and_unloads(server, client, right, capsys):
    until = time.monotonic() + SECONDS
    clients = [Soaking(number, server, client, right, until) for number in range(CLIENTS)]
    threads = [threading.Thread(target=each.run) for each in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [words for each in clients for words in each.wrong]
    pictures, refusals = sum(each.pictures for each in clients), sum(each.refusals for each in clients)
    with capsys.disabled():
        print(f"\n{SECONDS:.0f} s, {CLIENTS} clients: {pictures} pictures, {refusals} refusals, {len(wrong)} wrong")
    assert not wrong, wrong
    assert pictures > 0
    # And it goes on: every model loads and makes its picture.
    for name, (_, images) in MODELS.items():
        client.load(name)
        answer = client.infer(name, prompt="a cat", gen_args=ARGUMENTS[0], **images)
        assert opened(answer.picture).tobytes() == opened(right[name, 0]).tobytes()
        client.http.unload_model(name)

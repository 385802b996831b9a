"""A server with little memory: requests that need more are refused, and harm no other request."""

import time

import pytest
from tritonclient.utils import InferenceServerException

from support import config, memory_limit

GIB = 2**30
GOOD = dict(prompt="a cat", gen_args={"num_inference_steps": 2, "seed": 1})
# 2048x2048 pixels are within the default limits.
HUGE = dict(
    prompt="a cat",
    gen_args={"num_inference_steps": 1, "seed": 1, "height": 2048, "width": 2048, "num_images_per_prompt": 8},
)


@pytest.fixture(scope="module", params=["fast", "exact"])
def numerics(request):
    return request.param


@pytest.fixture(scope="module")
def model(numerics, repository, client):
    name = f"limited_{numerics}"
    repository.add(name, config({"numerics": numerics}))
    client.load(name)
    yield name
    client.http.unload_model(name)


def refused(client, model):
    """Sends a request that needs more memory than there is; returns the seconds until the error."""
    start = time.monotonic()
    with pytest.raises(InferenceServerException) as error:
        client.infer(model, **HUGE)
    assert error.value.status() == "StatusCode.UNAVAILABLE"
    assert "out of memory: the request needs " in error.value.message(), error.value.message()
    return time.monotonic() - start


def test_request_that_needs_more_memory_is_refused_at_once_and_harms_nobody(server, client, model, numerics):
    expected = client.infer(model, **GOOD).images
    # Fast numerics decode one image after the other.
    with memory_limit(server, GIB if numerics == "fast" else 2 * GIB) as is_limited:
        if not is_limited:
            pytest.skip("the system makes no control group")
        assert refused(client, model) < 1
        for _ in range(10):
            good = [client.start(model, **GOOD) for _ in range(3)]
            for _ in range(5):
                assert refused(client, model) < 1
            for _, future in good:
                assert future.result(timeout=60).images == expected
    assert client.infer(model, **GOOD).images == expected

"""Concurrent requests: shared UNet calls, the same bytes as alone, cancellation."""

import pytest
from tritonclient.utils import InferenceServerException

from support import at_most, config, wait_for

MODEL = "sd_base"
CALLS = "diffusion_unet_calls_total"
ENTRIES = "diffusion_unet_batch_entries_total"
CANCELLED = "diffusion_jobs_cancelled_total"

# Requests of four clients that have only the image size in common.
FOUR = [
    dict(
        prompt="a cat on a mat",
        gen_args={"num_inference_steps": 60, "guidance_scale": 7.5, "seed": 1, "scheduler": "DDIMScheduler"},
    ),
    dict(
        prompt="a red house",
        negative_prompt="a dog",
        gen_args={"num_inference_steps": 75, "guidance_scale": 3.0, "seed": 2, "scheduler": "PNDMScheduler"},
    ),
    dict(
        prompt="rain",
        gen_args={
            "num_inference_steps": 90,
            "guidance_scale": 12.0,
            "seed": 3,
            "scheduler": "DPMSolverMultistepScheduler",
        },
    ),
    # Without guidance: one batch entry where the others have two.
    dict(
        prompt="snow",
        gen_args={"num_inference_steps": 70, "guidance_scale": 1.0, "seed": 4, "scheduler": "DDIMScheduler"},
    ),
]
# Long enough to be cancelled while it runs.
LONG = dict(
    prompt="a very long way",
    gen_args={"num_inference_steps": 900, "seed": 5, "scheduler": "DDIMScheduler", "height": 128, "width": 128},
)


@pytest.fixture(scope="module", autouse=True)
def models(repository, client):
    repository.add(MODEL, config({"numerics": "exact", "max_steps": "1000"}))
    client.load(MODEL)


@pytest.fixture
def counted(client):
    """Returns a function that runs another one and returns (its result, UNet calls, UNet batch entries)."""

    def run(function):
        calls, entries = client.counter(CALLS, MODEL), client.counter(ENTRIES, MODEL)
        result = function()
        return result, client.counter(CALLS, MODEL) - calls, client.counter(ENTRIES, MODEL) - entries

    return run


def test_one_request_makes_one_unet_call_per_step(client, counted):
    _, calls, entries = counted(lambda: client.infer(MODEL, **FOUR[0]))
    assert calls == 60
    assert entries == 120
    _, calls, entries = counted(lambda: client.infer(MODEL, **FOUR[3]))
    assert calls == 70
    assert entries == 70


def test_four_clients_share_calls_and_get_the_same_bytes_as_alone(client, counted):
    alone, calls_alone, entries_alone = counted(lambda: [client.infer(MODEL, **request) for request in FOUR])
    together, calls_together, entries_together = counted(
        lambda: client.all_at_once([(MODEL, request) for request in FOUR])
    )
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.image == other.image, f"client {index} got another image together with others"
        assert one.parameters == other.parameters
    steps = sum(request["gen_args"]["num_inference_steps"] for request in FOUR)
    assert calls_alone >= steps
    assert calls_together < steps, "no UNet call was shared"
    assert entries_together == entries_alone


def test_a_batch_shares_calls(client, counted):
    request = dict(prompt=["a", "b", "c"], gen_args=[{**FOUR[0]["gen_args"], "seed": seed} for seed in (1, 2, 3)])
    _, calls, entries = counted(lambda: client.infer(MODEL, **request))
    assert calls == 60
    assert entries == 360


def test_a_short_request_does_not_wait_for_a_long_one(client):
    cancelled = client.counter(CANCELLED, MODEL)
    call, long = client.start(MODEL, **LONG)
    try:
        before = client.counter(CALLS, MODEL)
        wait_for(lambda: client.counter(CALLS, MODEL) > before, 30, "the long request runs")
        client.infer(MODEL, prompt="short", gen_args={"num_inference_steps": 2})
        assert not long.done()
    finally:
        call.cancel()
        with pytest.raises(InferenceServerException):
            long.result(timeout=30)
        # The client may learn of its cancellation before the engine drops the job; the next test counts these jobs.
        wait_for(lambda: client.counter(CANCELLED, MODEL) > cancelled, 30, "the engine dropped the job")


def test_cancel_ends_the_work(client):
    cancelled = client.counter(CANCELLED, MODEL)
    before = client.counter(CALLS, MODEL)
    call, future = client.start(MODEL, **LONG)
    wait_for(lambda: client.counter(CALLS, MODEL) > before, 30, "the request runs")
    call.cancel()
    with pytest.raises(InferenceServerException) as error:
        future.result(timeout=10)
    assert error.value.status() == "StatusCode.CANCELLED"
    wait_for(lambda: client.counter(CANCELLED, MODEL) == cancelled + 1, 5, "the engine dropped the job")
    after = client.counter(CALLS, MODEL)
    assert after - before < 1000, "the request ran to its end"
    with at_most(5):
        client.infer(MODEL, prompt="next", gen_args={"num_inference_steps": 2})
    assert client.counter(CALLS, MODEL) - after <= 4, "the cancelled request still runs"


def test_cancelling_one_leaves_the_others_alone(client):
    alone = client.infer(MODEL, **FOUR[1])
    same_size = {**LONG, "gen_args": {**LONG["gen_args"], "height": 64, "width": 64}}
    before = client.counter(CALLS, MODEL)
    call, dropped = client.start(MODEL, **same_size)
    wait_for(lambda: client.counter(CALLS, MODEL) > before, 30, "the first request runs")
    _, kept = client.start(MODEL, **FOUR[1])
    wait_for(lambda: client.counter(CALLS, MODEL) > before + 20, 30, "both requests run")
    call.cancel()
    assert kept.result(timeout=60).image == alone.image
    with pytest.raises(InferenceServerException):
        dropped.result(timeout=10)


def test_unload_with_a_request_in_flight(client):
    before = client.counter(CALLS, MODEL)
    _, future = client.start(MODEL, prompt="late", gen_args={"num_inference_steps": 150, "seed": 1})
    wait_for(lambda: client.counter(CALLS, MODEL) > before, 30, "the request runs")
    client.http.unload_model(MODEL)
    # The request may succeed or fail, but it must get a response.
    assert future.exception(timeout=60) is None or isinstance(future.exception(), InferenceServerException)
    wait_for(lambda: not client.http.is_model_ready(MODEL), 30, "the model is unloaded")
    client.load(MODEL)
    assert client.infer(MODEL, prompt="again", gen_args={"num_inference_steps": 2}).shape == [1, 1]

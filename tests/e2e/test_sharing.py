"""Concurrent requests: shared UNet calls, the same bytes as alone, cancellation."""

import pytest
from tritonclient.utils import InferenceServerException

from support import at_most, config, wait_for

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


@pytest.fixture(scope="module", params=["exact", "fast"])
def model(request, repository, client):
    name = f"sd_{request.param}"
    repository.add(name, config({"numerics": request.param, "max_steps": "1000"}))
    client.load(name)
    return name


@pytest.fixture
def counted(client, model):
    """Returns a function that runs another one and returns (its result, UNet calls, UNet batch entries)."""

    def run(function):
        calls, entries = client.counter(CALLS, model), client.counter(ENTRIES, model)
        result = function()
        return result, client.counter(CALLS, model) - calls, client.counter(ENTRIES, model) - entries

    return run


def test_one_request_makes_one_unet_call_per_step(client, counted, model):
    _, calls, entries = counted(lambda: client.infer(model, **FOUR[0]))
    assert calls == 60
    assert entries == 120
    _, calls, entries = counted(lambda: client.infer(model, **FOUR[3]))
    assert calls == 70
    assert entries == 70


def test_four_clients_share_calls_and_get_the_same_bytes_as_alone(client, counted, model):
    alone, calls_alone, entries_alone = counted(lambda: [client.infer(model, **request) for request in FOUR])
    together, calls_together, entries_together = counted(
        lambda: client.all_at_once([(model, request) for request in FOUR])
    )
    for index, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert one.image == other.image, f"client {index} got another image together with others"
        assert one.parameters == other.parameters
    steps = sum(request["gen_args"]["num_inference_steps"] for request in FOUR)
    assert calls_alone >= steps
    # Calls are shared where that is faster, which the engine learns from their times.
    assert calls_together <= steps
    assert model == "sd_exact" or calls_together < steps, "no UNet call was shared"
    assert entries_together == entries_alone


def test_a_batch_shares_calls(client, counted, model):
    request = dict(prompt=["a", "b", "c"], gen_args=[{**FOUR[0]["gen_args"], "seed": seed} for seed in (1, 2, 3)])
    _, calls, entries = counted(lambda: client.infer(model, **request))
    # As many as one image needs if all are shared, which exact numerics gain little from.
    assert 60 <= calls <= 180
    assert model == "sd_exact" or calls < 180
    assert entries == 360


def test_a_short_request_does_not_wait_for_a_long_one(client, model):
    cancelled = client.counter(CANCELLED, model)
    call, long = client.start(model, **LONG)
    try:
        before = client.counter(CALLS, model)
        wait_for(lambda: client.counter(CALLS, model) > before, 30, "the long request runs")
        client.infer(model, prompt="short", gen_args={"num_inference_steps": 2})
        assert not long.done()
    finally:
        call.cancel()
        with pytest.raises(InferenceServerException):
            long.result(timeout=30)
        # The client may learn of its cancellation before the engine drops the job; the next test counts these jobs.
        wait_for(lambda: client.counter(CANCELLED, model) > cancelled, 30, "the engine dropped the job")


def test_cancel_ends_the_work(client, model):
    cancelled = client.counter(CANCELLED, model)
    before = client.counter(CALLS, model)
    call, future = client.start(model, **LONG)
    wait_for(lambda: client.counter(CALLS, model) > before, 30, "the request runs")
    call.cancel()
    with pytest.raises(InferenceServerException) as error:
        future.result(timeout=10)
    assert error.value.status() == "StatusCode.CANCELLED"
    wait_for(lambda: client.counter(CANCELLED, model) == cancelled + 1, 5, "the engine dropped the job")
    after = client.counter(CALLS, model)
    assert after - before < 1000, "the request ran to its end"
    with at_most(5):
        client.infer(model, prompt="next", gen_args={"num_inference_steps": 2})
    assert client.counter(CALLS, model) - after <= 4, "the cancelled request still runs"


def test_cancelling_one_leaves_the_others_alone(client, model):
    alone = client.infer(model, **FOUR[1])
    same_size = {**LONG, "gen_args": {**LONG["gen_args"], "height": 64, "width": 64}}
    before = client.counter(CALLS, model)
    call, dropped = client.start(model, **same_size)
    wait_for(lambda: client.counter(CALLS, model) > before, 30, "the first request runs")
    _, kept = client.start(model, **FOUR[1])
    wait_for(lambda: client.counter(CALLS, model) > before + 20, 30, "both requests run")
    call.cancel()
    assert kept.result(timeout=60).image == alone.image
    with pytest.raises(InferenceServerException):
        dropped.result(timeout=10)


def test_unload_with_a_request_in_flight(client, model):
    before = client.counter(CALLS, model)
    _, future = client.start(model, prompt="late", gen_args={"num_inference_steps": 150, "seed": 1})
    wait_for(lambda: client.counter(CALLS, model) > before, 30, "the request runs")
    client.http.unload_model(model)
    # The request may succeed or fail, but it must get a response.
    assert future.exception(timeout=60) is None or isinstance(future.exception(), InferenceServerException)
    wait_for(lambda: not client.http.is_model_ready(model), 30, "the model is unloaded")
    client.load(model)
    assert client.infer(model, prompt="again", gen_args={"num_inference_steps": 2}).shape == [1, 1]

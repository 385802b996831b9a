"""What a server tells about its requests: metrics, the times in responses, traces, and a warm-up at load."""

import json
import time

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

import server as triton
import support
from support import CHECKPOINT, Repository, config, wait_for

PHASES = ["queue", "text_encoding", "preparation", "steps", "decoding", "encoding"]
SHORT = dict(prompt="a cat", gen_args={"num_inference_steps": 3, "seed": 1})
LONG = dict(
    prompt="a very long way",
    gen_args={"num_inference_steps": 900, "seed": 5, "scheduler": "DDIMScheduler", "height": 128, "width": 128},
)


@pytest.fixture(scope="module")
def model(repository, client):
    repository.add("measured", config({"max_unet_batch_size": "2"}))
    client.load("measured")
    return "measured"


def test_metrics_add_up_to_what_was_sent(server, client, model):
    def metric(name, **labels):
        return server.metric(name, model=model, **labels) or 0

    start = time.monotonic()
    for _ in range(4):
        client.infer(model, **SHORT)
    seconds = time.monotonic() - start
    for gen_args in {"num_inference_steps": 0}, {"height": 7}:
        with pytest.raises(InferenceServerException):
            client.infer(model, prompt="a cat", gen_args=gen_args)
    with pytest.raises(InferenceServerException):
        client.infer(model, **{**LONG, "gen_args": {**LONG["gen_args"], "timeout_ms": 300}})
    call, long = client.start(model, **LONG)
    wait_for(lambda: metric("diffusion_jobs_running") == 1, 30, "the long request runs")
    _, waits = client.start(model, **SHORT)
    wait_for(lambda: metric("diffusion_requests_waiting") == 1, 30, "the next one waits")
    call.cancel()
    with pytest.raises(InferenceServerException):
        long.result(timeout=30)
    waits.result(timeout=30)

    wait_for(lambda: metric("diffusion_jobs_running") == 0, 10, "all have ended")
    assert metric("diffusion_requests_waiting") == 0
    assert metric("diffusion_images_total") == 5
    assert metric("diffusion_failures_total", code="INVALID_ARG") == 2
    assert metric("diffusion_failures_total", code="UNAVAILABLE") == 1
    assert metric("diffusion_failures_total", code="CANCELLED") == 1
    assert metric("diffusion_failures_total") == 4
    for phase in PHASES:
        assert metric("diffusion_phase_seconds_count", phase=phase) == 5
        assert metric("diffusion_phase_seconds_bucket", phase=phase, le="+Inf") == 5
    assert 0 < metric("diffusion_phase_seconds_sum", phase="steps") < seconds + 10
    calls = metric("diffusion_unet_calls_total")
    assert metric("diffusion_unet_batch_size_count") == calls > 15
    # Each has guidance.
    assert metric("diffusion_unet_batch_size_sum") == metric("diffusion_unet_batch_entries_total") == 2 * calls
    assert metric("diffusion_unet_batch_size_bucket", le="1") == 0
    assert metric("diffusion_unet_batch_size_bucket", le="2") == calls


def test_response_tells_the_time_of_each_phase(client, model):
    start = time.monotonic()
    response = client.infer(model, **SHORT)
    elapsed = (time.monotonic() - start) * 1000
    timings = response.timings_ms
    assert list(timings) == PHASES
    assert all(duration >= 0 for duration in timings.values())
    assert timings["steps"] > 0
    assert sum(timings.values()) <= elapsed
    batch = client.infer(model, prompt=["a cat", "a dog"], gen_args=[SHORT["gen_args"]] * 2)
    both = batch.timings_ms
    assert [list(timings) for timings in both] == [PHASES, PHASES]


def test_trace_shows_the_phases(tmp_path, loopback_bind):
    repository = Repository(tmp_path / "models")
    repository.add("traced")
    file = tmp_path / "trace.json"
    settings = [f"triton,file={file}", "rate=1", "level=TIMESTAMPS", "triton,log-frequency=1"]
    running = triton.TritonServer(
        repository.folder,
        tmp_path / "log",
        models=["traced"],
        environment={"CUDA_VISIBLE_DEVICES": "", "LD_PRELOAD": loopback_bind},
        arguments=[f"--trace-config={setting}" for setting in settings],
    )
    with running, support.Client(running) as client:
        client.infer("traced", **SHORT)
        wait_for(lambda: list(tmp_path.glob("trace.json*")), 10, "the trace is written")
        time.sleep(0.5)
    written = "".join(path.read_text() for path in tmp_path.glob("trace.json*"))
    times = {}
    for line in json.loads(written):
        for event in line.get("timestamps", []):
            times[event["name"]] = event["ns"]
    ends = [times[f"{phase.upper()}_END"] for phase in PHASES]
    starts = [times[f"{phase.upper()}_START"] for phase in PHASES]
    assert ends == sorted(ends) and starts[1:] == ends[:-1]
    assert times["REQUEST_START"] <= starts[0] and ends[-1] <= times["REQUEST_END"]


def test_warm_up_runs_before_the_model_is_ready(server, client, repository):
    prompt = serialize_byte_tensor(np.array([b"warm"], dtype=object)).item()
    gen_args = serialize_byte_tensor(np.array([b'{"num_inference_steps": 2, "seed": 1}'], dtype=object)).item()
    inputs = "".join(
        f'inputs {{ key: "{name}" value {{ data_type: TYPE_STRING dims: 1 input_data_file: "{name}" }} }}'
        for name in ("prompt", "gen_args")
    )
    text = config() + f'model_warmup [{{ name: "first" batch_size: 1 count: 2 {inputs} }}]'
    folder = repository.add("warm", text, checkpoint=CHECKPOINT)
    (folder / "warmup").mkdir()
    (folder / "warmup" / "prompt").write_bytes(prompt)
    (folder / "warmup" / "gen_args").write_bytes(gen_args)
    client.load("warm")
    assert server.metric("diffusion_images_total", model="warm") == 2
    client.infer("warm", **SHORT)
    client.http.unload_model("warm")

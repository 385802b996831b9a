"""A server with 2 GiB of memory: requests that need more are refused, and harm no other request."""

import contextlib
import pathlib
import resource
import time

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from support import config, wait_for

GIB = 2**30
GROUPS = pathlib.Path("/sys/fs/cgroup")
GOOD = dict(prompt="a cat", gen_args={"num_inference_steps": 2, "seed": 1})
# 2048x2048 pixels are within the default limits.
HUGE = dict(
    prompt="a cat",
    gen_args={"num_inference_steps": 1, "seed": 1, "height": 2048, "width": 2048, "num_images_per_prompt": 8},
)


def control_group(name, limit):
    """Makes a control group with a memory limit; returns its folder, or None where the system refuses it."""
    for folder, file in (GROUPS / "memory" / name, "memory.limit_in_bytes"), (GROUPS / name, "memory.max"):
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            # The group gets the memory that its process has already.
            with contextlib.suppress(OSError):
                (folder / "memory.move_charge_at_immigrate").write_text("3")
            (folder / file).write_text(str(limit))
            return folder
        except OSError:
            folder.rmdir()
    return None


@contextlib.contextmanager
def memory_limit(server, limit):
    """Limits the memory of the server, by a control group if one can be made, else by its address space."""
    pid = server.process.pid
    folder = control_group(f"triton-diffusion-test-{pid}", limit)
    if folder is None:
        status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
        size, resident = (int(status[key].split()[0]) * 1024 for key in ("VmSize", "VmRSS"))
        before = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (size - resident + limit, before[1]))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_AS, before)
        return
    (folder / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        (folder.parent / "cgroup.procs").write_text(str(pid))
        # The kernel moves the threads one after the other.
        wait_for(lambda: not (folder / "cgroup.procs").read_text(), 10, "the group is empty")
        folder.rmdir()


@pytest.fixture(scope="module", params=["fast", "exact"])
def model(request, repository, client):
    name = f"limited_{request.param}"
    repository.add(name, config({"numerics": request.param}))
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


def test_request_that_needs_more_memory_is_refused_at_once_and_harms_nobody(server, client, model):
    expected = client.infer(model, **GOOD)
    with memory_limit(server, 2 * GIB):
        assert refused(client, model) < 1
        for _ in range(10):
            good = [client.start(model, **GOOD) for _ in range(3)]
            for _ in range(5):
                assert refused(client, model) < 1
            for _, future in good:
                np.testing.assert_array_equal(future.result(timeout=60), expected)
    np.testing.assert_array_equal(client.infer(model, **GOOD), expected)

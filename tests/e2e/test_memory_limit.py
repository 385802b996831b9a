"""A server with little memory: requests that need more are refused, and harm no other request."""

import contextlib
import pathlib
import time

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


def own_group(pid, root):
    """Returns the folder of a process's control group below `root`."""
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if (root.name == "memory") == ("memory" in controllers.split(",")) and (
            root / path[1:] / "cgroup.procs"
        ).exists():
            return root / path[1:]
    return root


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
    """Limits the memory of the server by a control group."""
    pid = server.process.pid
    folder = control_group(f"triton-diffusion-test-{pid}", limit)
    if folder is None:
        pytest.skip("the system makes no control group")
    before = own_group(pid, folder.parent)
    (folder / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text(str(pid))
        # The kernel moves the threads one after the other.
        wait_for(lambda: not (folder / "cgroup.procs").read_text(), 10, "the group is empty")
        folder.rmdir()


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
    with memory_limit(server, GIB if numerics == "fast" else 2 * GIB):
        assert refused(client, model) < 1
        for _ in range(10):
            good = [client.start(model, **GOOD) for _ in range(3)]
            for _ in range(5):
                assert refused(client, model) < 1
            for _, future in good:
                assert future.result(timeout=60).images == expected
    assert client.infer(model, **GOOD).images == expected

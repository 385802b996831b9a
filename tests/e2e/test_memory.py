"""Memory: errors when it runs out, recovery afterwards, and no growth over many loads."""

import collections
import contextlib
import json
import os
import pathlib
import resource

import pytest
from PIL import Image
from tritonclient.utils import InferenceServerException

import notebook
from client import to_base64
from support import CHECKPOINTS, MEMORY_WORDS, SECRET, wait_for

MIB = 2**20


@contextlib.contextmanager
def address_space(server, spare):
    """Limits the server's address space to its current size plus `spare` bytes, as a container might."""
    pid = server.process.pid
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[0])
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + spare, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


class Endpoint:
    """Calls the SageMaker routes of a server for one model."""

    def __init__(self, server, name, folder):
        self.url, self.name, self.folder = server.sagemaker_url, name, folder
        self.target = "sd_base.tar.gz"

    def load(self):
        body = {"model_name": self.name, "url": str(self.folder)}
        return notebook.send("POST", f"{self.url}/models", body, target=self.target)

    def invoke(self, **gen_args):
        body = notebook.body_of(prompt=f"a cat, BLOOM, out of memory, {SECRET}", gen_args=json.dumps(gen_args))
        return notebook.send("POST", f"{self.url}/models/{self.name}/invoke", body, target=self.target)

    def unload(self):
        return notebook.send("DELETE", f"{self.url}/models/{self.name}", target=self.target)


@pytest.fixture(scope="module")
def endpoint(server, tmp_path_factory):
    name = "0123456789abcdef0123456789abcdef"
    endpoint = Endpoint(server, name, notebook.unpacked(tmp_path_factory.mktemp("models") / name / "model", "sd_base"))
    status, _, body = endpoint.load()
    if status == 400 and b"/opt/ml/models" in body:
        pytest.skip("this tritonserver loads from /opt/ml/models only")
    assert status == 200, body
    assert endpoint.unload()[0] == 200
    return endpoint


def check_507(status, body):
    assert status == 507, (status, body)
    message = json.loads(body)["error"]
    assert any(word in message for word in MEMORY_WORDS)
    assert SECRET not in message and "BLOOM" not in message


def test_load_without_memory_is_507_and_succeeds_later(server, endpoint):
    with address_space(server, 100 * MIB):
        status, _, body = endpoint.load()
        check_507(status, body)
    status, _, body = endpoint.load()
    assert status == 200, body
    assert endpoint.unload()[0] == 200


def test_request_without_memory_is_507_and_a_smaller_one_succeeds(server, endpoint):
    assert endpoint.load()[0] == 200
    try:
        assert endpoint.invoke(num_inference_steps=1, seed=1)[0] == 200
        with address_space(server, 100 * MIB):
            status, _, body = endpoint.invoke(num_inference_steps=1, seed=1, height=1024, width=1024)
            check_507(status, body)
            status, _, body = endpoint.invoke(num_inference_steps=1, seed=1)
            assert status == 200, body
        # An error that a user causes never becomes 507, whatever words the prompt contains.
        status, _, body = endpoint.invoke(num_inference_steps="OOM")
        assert status == 400, body
    finally:
        assert endpoint.unload()[0] == 200


def test_input_image_without_memory_fails_alone(server, client, repository):
    """The pixels are not libtorch's memory: a failed allocation there would end the server."""
    repository.add("with_image")
    client.load("with_image")
    small = dict(prompt="a cat", gen_args={"num_inference_steps": 1, "seed": 1})
    client.infer("with_image", **small)
    image = to_base64(Image.new("RGB", (4000, 4000), "red"))
    with address_space(server, 30 * MIB):
        with pytest.raises(InferenceServerException) as error:
            client.infer("with_image", **small, image=image, mask_image=image)
        assert error.value.status() == "StatusCode.UNAVAILABLE"
        assert "out of memory: input `image`: decoding an image needs 184 MiB" in error.value.message()
    client.infer("with_image", **small)
    client.http.unload_model("with_image")


def opened(link):
    """Returns the target of a descriptor in /proc.

    None for a socket, which the server's clients open and close (the backend has none), for a file of /proc, which
    Triton's metrics read every two seconds, and for a descriptor that was closed in the meantime.
    """
    try:
        target = os.readlink(link)
    except FileNotFoundError:
        return None
    return None if target.startswith(("socket:", "/proc/")) else target.split(":[")[0]


class Process:
    """Counts what a process holds, from /proc: memory, threads, open files, maps of a folder."""

    def __init__(self, pid, folder):
        proc = pathlib.Path(f"/proc/{pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        self.resident = int(status["VmRSS"].split()[0]) * 1024
        self.threads = int(status["Threads"])
        self.files = collections.Counter(filter(None, map(opened, (proc / "fd").iterdir())))
        self.maps = [line for line in (proc / "maps").read_text().splitlines() if str(folder) in line]


def test_load_infer_unload_leaves_nothing(server, client, repository):
    """Checks that 200 cycles grow the process by less than 100 MB and leave no thread, map or open file."""
    repository.add("cycled")

    def cycle():
        client.load("cycled")
        client.infer("cycled", prompt="a cat", gen_args={"num_inference_steps": 1, "seed": 1})
        client.http.unload_model("cycled")
        # Triton responds to an unload before the model is destroyed.
        wait_for(lambda: server.metric("diffusion_weights_bytes", device="cpu") == 0, 10, "the weights are freed")

    for _ in range(5):
        cycle()
    folder = os.path.realpath(CHECKPOINTS / "sd2_base")
    before = Process(server.process.pid, folder)
    for _ in range(200):
        cycle()
    after = Process(server.process.pid, folder)
    assert after.resident - before.resident < 100 * MIB, (before.resident, after.resident)
    assert after.threads <= before.threads
    assert not after.files - before.files
    assert after.maps == []
    assert server.metric("diffusion_weights_bytes", device="cpu") == 0

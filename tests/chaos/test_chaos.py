"""Good clients next to everything that can go wrong: each answer is right or a clear error, and memory stays flat.

The server runs a library in which this test plants panics and failed allocations (`make chaos`). Next to the good
clients, others cancel, disconnect, send rubbish, and ask for too much. Models are loaded and unloaded while their files
are replaced by damaged ones. The disk with the server's log and one of the models is full at times.

TRITON_DIFFUSION_CHAOS_SECONDS sets the duration.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import shutil
import socket
import struct
import threading
import time

import pytest
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

import server as triton
import support
from client import image_file, input_tensors, to_base64
from server import ROOT
from support import CHECKPOINTS, Repository, config, memory_limit, waves

SECONDS = float(os.environ.get("TRITON_DIFFUSION_CHAOS_SECONDS", "60"))
BACKENDS = ROOT / "dist" / "chaos"
MIB = 2**20
STEADY = {
    "chaos_base": ("sd2_base", {}, {}),
    "chaos_exact": ("sd1", {"numerics": "exact"}, {}),
    "chaos_inpaint": ("sd2_inpaint", {}, {"image": to_base64(waves(64, 64)), "mask_image": to_base64(waves(64, 64))}),
}
ARGUMENTS = [{"num_inference_steps": steps, "seed": steps} for steps in (1, 2, 4)]
HUGE = {"num_inference_steps": 1, "height": 2048, "width": 2048, "num_images_per_prompt": 8}
# Of the planted failures, and of a request that ran when an instance started anew after one.
PLANTED = re.compile(r"internal error; see the server log|start anew|out of memory")
# What a client that asks for something wrong may hear.
REFUSED = re.compile(
    r"input `|gen_args|prompt|out of memory|time limit|unexpected|byte size|data size|failed to parse|must",
)
# What a client of a model whose files are replaced may hear.
UNLOADED = re.compile(
    r"unknown model|is not ready|not found|no available versions|unload|in transition|failed to load|busy|unavailable|"
    r"checkpoint|safetensors|changed while|can no longer|mapped|internal error|out of memory|start anew|no version",
    re.IGNORECASE,
)


class Actor:
    """A thread that acts until the end, counts what it did, and collects what must not happen."""

    def __init__(self, name, act, pause=0.0):
        self.name, self.act, self.pause = name, act, pause
        self.count, self.errors, self.wrong = 0, 0, []

    def start(self, until):
        self.thread = threading.Thread(target=self.run, args=(until,))
        self.thread.start()
        return self

    def run(self, until):
        while time.monotonic() < until and not self.wrong:
            self.count += 1
            try:
                self.act(self)
            except Exception as error:  # the test reports it
                self.wrong.append(f"{self.name}: {error!r}")
            time.sleep(self.pause * random.random())


@contextlib.contextmanager
def small_disk(folder, size):
    """Mounts a small disk in memory; yields whether the system allows it."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode()) == 0
    try:
        yield mounted
    finally:
        if mounted:
            libc.umount2(bytes(folder), 2)


def resident(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) * 1024


class Chaos:
    def __init__(self, server, client, folder, disk, failures, is_limited):
        self.server, self.client, self.folder, self.disk, self.failures = server, client, folder, disk, failures
        # Without a limit, there may be memory for it.
        self.too_large = [HUGE] if is_limited else []
        self.expected = {}
        self.control = threading.Lock()

    def generate_expected(self):
        for name, (_, _, images) in STEADY.items():
            for number, gen_args in enumerate(ARGUMENTS):
                response = self.client.infer(name, prompt="a cat", gen_args=gen_args, **images)
                self.expected[name, number] = support.open_image(response.image).tobytes()

    def good(self, actor):
        name = random.choice(list(STEADY))
        number = random.randrange(len(ARGUMENTS))
        try:
            response = self.client.infer(name, prompt="a cat", gen_args=ARGUMENTS[number], **STEADY[name][2])
        except InferenceServerException as error:
            actor.errors += 1
            if not PLANTED.search(error.message()):
                actor.wrong.append(f"good: {error}")
            return
        if support.open_image(response.image).tobytes() != self.expected[name, number]:
            actor.wrong.append(f"good: another image of {name}")

    def cancel(self, actor):
        gen_args = {"num_inference_steps": 200, "seed": 1, "scheduler": "DDIMScheduler"}
        call, future = self.client.start("chaos_base", prompt="a cat", gen_args=gen_args)
        time.sleep(0.2 * random.random())
        call.cancel()
        with contextlib.suppress(InferenceServerException):
            future.result(timeout=60)

    def disconnect(self, actor):
        body = json.dumps(
            {
                "inputs": [
                    {"name": "prompt", "shape": [1, 1], "datatype": "BYTES", "data": ["a cat"]},
                    {"name": "gen_args", "shape": [1, 1], "datatype": "BYTES", "data": ['{"num_inference_steps": 3}']},
                ]
            }
        ).encode()
        head = f"POST /v2/models/chaos_base/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        sent = (head + body)[: random.choice([10, len(head), len(head) + 20, len(head) + len(body)])]
        with socket.create_connection(("127.0.0.1", self.server.http_port), timeout=30) as connection:
            connection.sendall(sent)
            if random.random() < 0.5:
                # Closes with a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def rubbish(self, actor):
        noise = random.randbytes(random.choice([0, 1, 20, 5000]))
        kind = random.randrange(5)
        image = bytearray(image_file(waves(64, 64)))
        for _ in range(20):
            image[random.randrange(len(image))] = random.randrange(256)
        inputs = [
            {"prompt": noise},
            {"prompt": "a cat", "gen_args": noise},
            {"prompt": "a cat", "gen_args": json.dumps({"num_inference_steps": noise.decode("latin-1")})},
            {"prompt": "a cat", "image": noise, "mask_image": noise},
            {"prompt": "a cat", "image": to_base64(bytes(image)), "mask_image": to_base64(waves(64, 64))},
        ][kind]
        model = "chaos_inpaint" if kind >= 3 else "chaos_base"
        if kind == 0:
            # A tensor whose lengths do not fit.
            tensor = httpclient.InferInput("prompt", [1, 1], "BYTES")
            tensor._raw_data = noise
            tensor._parameters["binary_data_size"] = len(noise)
            tensors = [tensor]
        else:
            tensors = input_tensors(httpclient, inputs)
        with httpclient.InferenceServerClient(self.server.http_address, network_timeout=120.0) as http:
            try:
                http.infer(model, tensors)
            except InferenceServerException as error:
                actor.errors += 1
                if not REFUSED.search(str(error)) and not PLANTED.search(str(error)):
                    actor.wrong.append(f"rubbish {kind}: {error}")

    def too_much(self, actor):
        gen_args = random.choice(
            [
                *self.too_large,
                {"num_inference_steps": 10**9},
                {"num_images_per_prompt": 10**9},
                {"height": 2**31, "width": 64},
                {"timeout_ms": 1, "num_inference_steps": 500, "scheduler": "DDIMScheduler"},
            ]
        )
        try:
            self.client.infer("chaos_exact", prompt="a cat", gen_args=gen_args)
            actor.wrong.append(f"too much was accepted: {gen_args}")
        except InferenceServerException as error:
            actor.errors += 1
            if not (REFUSED.search(error.message()) or PLANTED.search(error.message())):
                actor.wrong.append(f"too much: {error}")

    def replace_files(self, actor):
        """Replaces the weights of a model by good, damaged, truncated or missing ones, loads, asks and unloads."""
        weights = self.folder / "chaos_replaced" / "1" / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors"
        good = (CHECKPOINTS / "sd2_base" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        kind = random.randrange(4)
        content = [good, good[: random.randrange(len(good))], random.randbytes(2000), None][kind]
        new = weights.with_suffix(".new")
        try:
            if content is None:
                weights.unlink(missing_ok=True)
            else:
                new.write_bytes(content)
                new.rename(weights)
        except OSError:
            # The disk is full.
            new.unlink(missing_ok=True)
        try:
            with self.control:
                self.client.http.load_model("chaos_replaced")
                self.client.infer("chaos_replaced", prompt="a cat", gen_args=ARGUMENTS[0])
                if random.random() < 0.3:
                    # In place, under the map of a model that serves.
                    with contextlib.suppress(OSError), weights.open("r+b") as file:
                        file.truncate(random.randrange(len(good)))
                    self.client.infer("chaos_replaced", prompt="a cat", gen_args=ARGUMENTS[0])
                    weights.unlink()
                self.client.http.unload_model("chaos_replaced")
        except InferenceServerException as error:
            actor.errors += 1
            if not UNLOADED.search(str(error)):
                actor.wrong.append(f"replaced: {error}")

    def fill_disk(self, actor):
        filler = self.disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(MIB))
        time.sleep(random.random())
        filler.unlink(missing_ok=True)

    def plant(self, actor):
        point = random.choice(["prepare", "step", "finish", "load"])
        fault = random.choice(["panic", "out_of_memory"])
        if point == "load":
            fault = "out_of_memory"
        (self.failures / f"{point}.{fault}").touch()


def test_good_clients_are_served_next_to_all_that_goes_wrong(tmp_path, capsys):
    if not (BACKENDS / "diffusion" / "libtriton_diffusion.so").is_file():
        pytest.fail("run `make chaos`, which builds the library with planted failures")
    repository = Repository(tmp_path / "models")
    for name, (checkpoint, parameters, _) in STEADY.items():
        repository.add(name, config(parameters), checkpoint=CHECKPOINTS / checkpoint)
    failures = tmp_path / "failures"
    failures.mkdir()
    disk = tmp_path / "disk"
    with small_disk(disk, 64 * MIB) as mounted:
        replaced = repository.add("chaos_replaced", checkpoint=None)
        shutil.copytree(CHECKPOINTS / "sd2_base", disk / "checkpoint")
        (replaced / "1" / "checkpoint").symlink_to(disk / "checkpoint")
        running = triton.TritonServer(
            repository.folder,
            disk / "log",
            backends=BACKENDS,
            models=list(STEADY),
            environment={
                "CUDA_VISIBLE_DEVICES": "",
                "TRITON_DIFFUSION_FAILPOINTS": str(failures),
            },
        )
        with running, support.Client(running) as client, memory_limit(running, 3 << 30) as is_limited:
            chaos = Chaos(running, client, repository.folder, disk, failures, is_limited)
            chaos.generate_expected()
            until = time.monotonic() + SECONDS
            actors = [Actor("good", chaos.good) for _ in range(3)]
            actors += [
                Actor("cancel", chaos.cancel, 0.1),
                Actor("disconnect", chaos.disconnect, 0.1),
                Actor("rubbish", chaos.rubbish, 0.05),
                Actor("too much", chaos.too_much, 0.1),
                Actor("replace files", chaos.replace_files, 0.3),
                Actor("plant", chaos.plant, 4.0),
            ]
            if mounted:
                actors.append(Actor("fill disk", chaos.fill_disk, 3.0))
            for actor in actors:
                actor.start(until)
            time.sleep(SECONDS / 3)
            early = resident(running.process)
            for actor in actors:
                actor.thread.join()
            late = resident(running.process)
            for file in failures.iterdir():
                file.unlink()
            with capsys.disabled():
                acts = ", ".join(f"{actor.name} {actor.count} ({actor.errors} errors)" for actor in actors)
                print(f"\n{SECONDS:.0f} s: {acts}; {early // MIB} MiB after a third, {late // MIB} MiB at the end")
            wrong = [words for actor in actors for words in actor.wrong]
            assert not wrong, wrong
            assert running.is_alive()
            # Every model serves its image, as before.
            for (name, number), image in chaos.expected.items():
                response = client.infer(name, prompt="a cat", gen_args=ARGUMENTS[number], **STEADY[name][2])
                assert support.open_image(response.image).tobytes() == image
            assert late - early < 150 * MIB

"""Runs the gateway of `triton-diffusion`, and sends it requests."""

import contextlib
import http.client
import io
import json
import os
import pathlib
import signal
import subprocess

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from support import ROOT, TIMEOUT, spot

COMMAND = ROOT / "dist" / "bin" / "triton-diffusion"
# Goes into config.pbtxt: the model may send several responses to a request.
DECOUPLED = "model_transaction_policy { decoupled: true }\n"


class Gateway:
    """One gateway on a free port of loopback; use it as a context manager.

    tritons: the gRPC addresses of the servers.
    arguments: further command-line arguments.
    key: the API key.
    """

    def __init__(self, *tritons, arguments=(), key=None):
        self.command = [COMMAND, "gateway", "--listen", "127.0.0.1:0", *map(str, arguments)]
        for address in tritons:
            self.command += ["--triton", address]
        self.key = key
        self.process = self.port = None

    def __enter__(self):
        environment = {**os.environ, **({"TRITON_DIFFUSION_API_KEY": self.key} if self.key else {})}
        self.process = subprocess.Popen(self.command, env=environment, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), line
        self.port = int(line.rsplit(":", 1)[1])
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @property
    def url(self):
        """Returns the URL of OpenAI's API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def memory(self):
        """Returns the resident memory of the process in bytes."""
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def terminate(self):
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    @contextlib.contextmanager
    def connection(self):
        """Opens a connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            yield connection

    def send(self, method, path, body=None, headers=None):
        """Sends a request, its body as JSON unless it is bytes. Returns the status, the headers and the body."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("content-type", "application/json")
        with self.connection() as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def json(self, method, path, body=None, status=200):
        """Sends a request, checks the status, and returns the JSON of the body."""
        got, _, reply = self.send(method, path, body)
        assert got == status, reply
        return json.loads(reply)

    def error(self, path, body, status=400):
        """Sends a POST that must fail; returns the error's object, with its message."""
        return self.json("POST", path, body, status)["error"]

    @contextlib.contextmanager
    def stream(self, path, body):
        """Sends a POST whose response is a stream; yields an iterator of its events, (type, data)."""
        with self.connection() as connection:
            connection.request("POST", path, json.dumps(body).encode(), {"content-type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.headers["content-type"] == "text/event-stream"
            yield read_events(response)

    def metric(self, name, **labels):
        """Returns the sum of the samples of a metric that have all these labels."""
        text = self.send("GET", "/metrics")[2].decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def read_events(lines):
    """Yields (type, data) of each event in a stream."""
    kind = None
    for line in lines:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            yield kind, json.loads(value)


def file(image):
    """Returns an image as a file that the client of OpenAI sends."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    encoded.name = "image.png"
    encoded.seek(0)
    return encoded


def transparent_spot(width, height):
    """Makes OpenAI's mask: transparent where `spot` is white."""
    mask = Image.new("RGBA", (width, height), (10, 20, 30, 255))
    mask.putalpha(Image.fromarray(255 - np.asarray(spot(width, height))))
    return mask


def cancelled(server, model="sd_base"):
    """Returns how many jobs of a model were cancelled."""
    return server.metric("diffusion_jobs_cancelled_total", model=model) or 0


def running(server, model="sd_base"):
    """Returns how many jobs of a model run."""
    return server.metric("diffusion_jobs_running", model=model) or 0

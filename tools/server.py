"""Starts a tritonserver on loopback, waits until it is ready, and stops it. The command (`make serve`) serves a folder.

The demo, the benches and the end-to-end tests use it. The server is part of the nvidia-pytriton package of this Python
environment; the variable TRITONSERVER names another program.
"""

import argparse
import contextlib
import ctypes
import importlib.util
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKENDS = ROOT / "dist" / "backends"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ServerError(RuntimeError):
    """The server was not found, did not start, or stopped early."""


def find_tritonserver():
    """Returns the path of the tritonserver program."""
    named = os.environ.get("TRITONSERVER")
    if named:
        return pathlib.Path(named)
    package = pytriton_folder()
    if package is not None:
        program = package / "tritonserver" / "bin" / "tritonserver"
        if program.exists():
            return program
    found = shutil.which("tritonserver")
    if found:
        return pathlib.Path(found)
    raise ServerError("no tritonserver found: run 'make setup', or set TRITONSERVER to the program")


def pytriton_folder():
    """Returns the folder of the nvidia-pytriton package, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def free_ports(count):
    """Returns `count` different TCP ports that are free on loopback at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _end_with_parent():
    # The kernel stops the server even if the process that started it is killed.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class TritonServer:
    """One tritonserver process; use it as a context manager.

    model_repository: the folder of models.
    log_path: the file for the server's output.
    models: the names of the models to load at the start. The model control API loads the others.
    backends: the folder of backends.
    arguments: further command-line arguments.
    environment: variables to set for the server; the value None unsets a variable.
    sagemaker: whether to serve the SageMaker routes too. That front end has no option for its address: the caller
        keeps it off the network with `environment`.
    ready_timeout: seconds to wait for readiness.
    ports: the ports of HTTP, gRPC and metrics; free ports by default.
    """

    def __init__(
        self,
        model_repository,
        log_path,
        models=(),
        backends=BACKENDS,
        arguments=(),
        environment=None,
        sagemaker=False,
        ready_timeout=60.0,
        ports=None,
    ):
        self.model_repository = pathlib.Path(model_repository)
        self.log_path = pathlib.Path(log_path)
        self.models = tuple(models)
        self.backends = pathlib.Path(backends)
        self.arguments = tuple(arguments)
        self.environment = dict(environment or {})
        self.sagemaker = sagemaker
        self.ready_timeout = ready_timeout
        self.ports = ports
        self.process = None
        self.http_port = self.grpc_port = self.metrics_port = self.sagemaker_port = None

    @property
    def http_address(self):
        """Returns host:port of the HTTP front end."""
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_address(self):
        """Returns host:port of the gRPC front end."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def sagemaker_url(self):
        """Returns the URL of the SageMaker front end."""
        return f"http://127.0.0.1:{self.sagemaker_port}"

    def command(self):
        """Returns the command line of the server."""
        command = [
            str(find_tritonserver()),
            f"--model-repository={self.model_repository}",
            f"--backend-directory={self.backends}",
            "--model-control-mode=explicit",
            # One model that fails to load does not stop the server.
            "--exit-on-error=false",
            "--strict-readiness=false",
            "--exit-timeout-secs=20",
            "--http-address=127.0.0.1",
            f"--http-port={self.http_port}",
            "--grpc-address=127.0.0.1",
            f"--grpc-port={self.grpc_port}",
            "--metrics-address=127.0.0.1",
            f"--metrics-port={self.metrics_port}",
            "--metrics-interval-ms=200",
        ]
        if self.sagemaker:
            command += ["--allow-sagemaker=true", f"--sagemaker-port={self.sagemaker_port}"]
        command += [f"--load-model={name}" for name in self.models]
        return command + list(self.arguments)

    def start(self):
        """Starts the server and waits for readiness.

        Tries other ports if one was taken in the meantime, and again if gRPC ended the server: rarely, its event engine
        starts with a closed descriptor, and aborts before a model is loaded.
        """
        for attempt in range(3):
            self.http_port, self.grpc_port, self.metrics_port, self.sagemaker_port = free_ports(4)
            if self.ports is not None:
                self.http_port, self.grpc_port, self.metrics_port = self.ports
            self._spawn()
            try:
                self._wait_ready()
                return self
            except ServerError:
                taken = "ddress already in use" in self.log() and self.ports is None
                aborted = "epoll_wait error: Bad file descriptor" in self.log()
                self.stop()
                if not (taken or aborted) or attempt == 2:
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable")

    def _spawn(self):
        environment = dict(os.environ)
        for name, value in self.environment.items():
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = str(value)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_end_with_parent,
            )

    def _wait_ready(self):
        deadline = time.monotonic() + self.ready_timeout
        while time.monotonic() < deadline:
            code = self.process.poll()
            if code is not None:
                raise ServerError(f"tritonserver exited with status {code}:\n{self.log()[-4000:]}")
            if self._front_ends_answer():
                # Triton loads models before it starts the front ends: a model that is not ready failed to load.
                missing = [name for name in self.models if not self.is_ready(name)]
                if missing:
                    raise ServerError(f"not loaded: {', '.join(missing)}\n{self.log()[-4000:]}")
                return
            time.sleep(0.05)
        raise ServerError(f"tritonserver was not ready after {self.ready_timeout:.0f} s:\n{self.log()[-4000:]}")

    def is_ready(self, model):
        """Returns whether a model is ready."""
        return self._get_ok(f"http://{self.http_address}/v2/models/{model}/ready")

    def _front_ends_answer(self):
        # The front ends start one after the other, the metrics endpoint last; gRPC starts before HTTP.
        urls = [f"http://{self.http_address}/v2/health/ready", f"http://127.0.0.1:{self.metrics_port}/metrics"]
        if self.sagemaker:
            urls.append(f"{self.sagemaker_url}/ping")
        return all(self._get_ok(url) for url in urls)

    @staticmethod
    def _get_ok(url):
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return reply.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError, OSError):
            return False

    def is_alive(self):
        """Returns whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stop(self, timeout=40.0):
        """Stops the server: SIGTERM, then SIGKILL after `timeout` seconds. Returns the exit status."""
        if self.process is None:
            return None
        process, self.process = self.process, None
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode

    def log(self):
        """Returns the output of the server."""
        try:
            return self.log_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def metrics(self):
        """Returns the text of the metrics endpoint."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as reply:
            return reply.read().decode()

    def metric(self, name, **labels):
        """Returns the sum of the samples of a metric that have all these labels; None if there is no such sample."""
        # The parser appends `_total` to a counter without it, such as Triton's nv_inference_count.
        names = (name, f"{name}_total")
        values = [
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name in names and labels.items() <= sample.labels.items()
        ]
        return sum(values) if values else None

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


def main():
    parser = argparse.ArgumentParser(description="Serves all models of a repository on 127.0.0.1 until Ctrl-C.")
    parser.add_argument("model_repository", type=pathlib.Path)
    parser.add_argument("arguments", nargs="*", help="further arguments of tritonserver, after --")
    arguments = parser.parse_args()
    command = [
        str(find_tritonserver()),
        f"--model-repository={arguments.model_repository.resolve()}",
        f"--backend-directory={BACKENDS}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        *arguments.arguments,
    ]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()

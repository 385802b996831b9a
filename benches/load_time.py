"""Compares the load time of one checkpoint in this backend and in diffusers behind Triton's Python backend.

    make bench        (or: .venv/bin/python benches/load_time.py --reference-venv .venv-reference)

One server loads each model, generates one image and unloads the model, --rounds times in turn. The program prints the
medians of the load times and their ratio. A first load of each model, which does not count, fills the page cache and
maps the libraries.
"""

import argparse
import pathlib
import shutil
import statistics

import tritonclient.http as httpclient

from python_backend import REFERENCE_VENV, TINY, WORK, add_model, load_once, start

DIFFUSION = "diffusion"
PYTHON = "python_diffusers"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-venv", type=pathlib.Path, default=REFERENCE_VENV)
    parser.add_argument("--checkpoint", type=pathlib.Path, default=TINY)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    models = (DIFFUSION, PYTHON)
    for model, backend in zip(models, ("diffusion", "python"), strict=True):
        add_model(WORK / "model_repository", model, backend, arguments.checkpoint)
    seconds = {model: [] for model in models}
    server = start(WORK, arguments.reference_venv)
    with server, httpclient.InferenceServerClient(server.http_address, network_timeout=600.0) as client:
        for model in models:
            load_once(client, model)
        for _ in range(arguments.rounds):
            for model in models:
                seconds[model].append(load_once(client, model))

    print(f"load of {arguments.checkpoint.name}, median of {arguments.rounds}, in one server run, on the CPU")
    for model in models:
        each = ", ".join(f"{value:.2f}" for value in seconds[model])
        print(f"  {model:<18} {statistics.median(seconds[model]):7.2f} s   ({each})")
    ratio = statistics.median(seconds[PYTHON]) / statistics.median(seconds[DIFFUSION])
    print(f"  {DIFFUSION} loads {ratio:.0f} times faster than diffusers in the Python backend")


if __name__ == "__main__":
    main()

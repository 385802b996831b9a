"""Compares the load time of one checkpoint in this backend and in diffusers behind Triton's Python backend.

    .venv/bin/python benches/load_time.py --checkpoint tiny

One server loads each model, generates one image and unloads the model, --rounds times in turn. A first load of each
model, which does not count, fills the page cache and maps the libraries.
"""

import argparse
import shutil

import tritonclient.http as httpclient

import checkpoints
import comparison
import results
from python_backend import WORK, add_model, load_once, start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "load_time", 3)
    parser.add_argument("--checkpoint", choices=checkpoints.NAMES, default="tiny")
    parser.add_argument("--numerics", choices=comparison.OURS, default="fast")
    parser.add_argument("--side", type=int, default=64, help="height and width of the image [default: 64]")
    arguments = parser.parse_args()

    checkpoint = checkpoints.get(arguments.checkpoint)
    shutil.rmtree(WORK / "model_repository", ignore_errors=True)
    add_model(WORK / "model_repository", arguments.numerics, "diffusion", checkpoint, numerics=arguments.numerics)
    add_model(WORK / "model_repository", "python", "python", checkpoint)
    seconds = {arguments.numerics: [], "python": []}
    server = start(WORK, arguments.reference_venv)
    with server, httpclient.InferenceServerClient(server.http_address, network_timeout=600.0) as client:
        for model in seconds:
            load_once(client, model, arguments.side)
        for _ in range(arguments.rounds):
            for model, values in seconds.items():
                values.append(load_once(client, model, arguments.side))
        version = client.get_server_metadata()["version"]

    print(f"load of {arguments.checkpoint}, in one server run, on the CPU")
    print("\n".join(comparison.lines(seconds, "s")))
    settings = {"checkpoint": arguments.checkpoint}
    results.save(arguments, "load", settings, [{"what": "load again", "samples": seconds}], server=version)


if __name__ == "__main__":
    main()

"""Measures how far the images of `fast` are from those of `exact`, and those of `deep_cache` from those without, in dB.

    .venv/bin/python benches/psnr.py --seeds 20

PSNR is that of 8-bit images; 50 dB is a root mean square error of 0.8 of 255. Each pipeline generates one image for
each seed, from trained checkpoints of the demo and from checkpoints with noise for weights. `deep_cache` is measured
with `fast` and the trained text-to-image checkpoint.
"""

import argparse
import io
import pathlib
import shutil
import statistics
import sys

import numpy as np
import tritonclient.grpc as grpcclient
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools" / "gpu_check"))
import images
import results
import seeded_checkpoints
from client import input_tensors, read_response, to_base64
from python_backend import ROOT, WORK
from server import TritonServer

TRAINED = ROOT / "demo" / "models"
COLORS = ("red", "blue", "green", "yellow", "purple")
SHAPES = ("star", "circle", "square", "triangle")
# Folder, images that a request needs, and settings. An image-to-image request goes to a text-to-image checkpoint.
SEEDED = {
    "sd1": ((), {}),
    "sd2_base": ((), {}),
    "sd2_768v": ((), {}),
    "lcm": ((), {"num_inference_steps": 4}),
    "sd_turbo": ((), {"num_inference_steps": 2, "guidance_scale": 0.0}),
    "sd2_depth": (("image",), {}),
    "sd2_inpaint": (("image", "mask_image"), {}),
    "x4_upscaler": (("image",), {"num_inference_steps": 20}),
}
DEMO = {
    "sd_base": ((), {"num_inference_steps": 30}),
    "sd_depth": (("image",), {"num_inference_steps": 30, "strength": 1.0}),
    "sd_inpaint": (("image", "mask_image"), {"num_inference_steps": 30, "height": 128, "width": 128}),
    "sd_upscale": (("image",), {"num_inference_steps": 20, "guidance_scale": 1.0}),
}
IMAGE_TO_IMAGE = {"sd_base": TRAINED, "sd2_base": None}
DEEP_CACHE = [(steps, interval) for steps in (20, 30, 50) for interval in (2, 3, 5)]


def prompt(seed: int) -> str:
    """Returns a text that the demo's checkpoints know."""
    pick = np.random.Generator(np.random.PCG64(seed))
    one, other = pick.choice(COLORS, 2, replace=False)
    first, second = pick.choice(SHAPES, 2, replace=False)
    return f"a {one} {first} left of a {other} {second} on a black background"


def input_images(seed: int, names: tuple[str, ...], side: int = 64) -> dict[str, str]:
    """Returns seeded input images: smooth colors, and a mask of one rectangle."""
    noise = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 4, side // 4, 3 * side // 4, side // 2))
    return {name: to_base64(mask if name == "mask_image" else image) for name in names}


def add(repository: pathlib.Path, name: str, checkpoint: pathlib.Path, numerics: str) -> None:
    """Adds a model of this backend."""
    (repository / name / "1").mkdir(parents=True)
    parameter = f'parameters {{ key: "numerics" value: {{ string_value: "{numerics}" }} }}'
    (repository / name / "config.pbtxt").write_text(f'backend: "diffusion"\nmax_batch_size: 8\n{parameter}\n')
    (repository / name / "1" / "checkpoint").symlink_to(checkpoint.resolve(), target_is_directory=True)


def generate(
    client: grpcclient.InferenceServerClient, model: str, seed: int, wanted: tuple, settings: dict
) -> np.ndarray:
    """Returns the pixels of one image."""
    inputs = {"prompt": prompt(seed), "gen_args": settings | {"seed": seed}} | input_images(seed, wanted)
    response = read_response(client.infer(model, input_tensors(grpcclient, inputs)))
    return images.read(io.BytesIO(response.image))


def cases() -> list[tuple[str, str, pathlib.Path, tuple, dict]]:
    """Returns what is compared: a title, the model, its checkpoint, the images of a request, the settings."""
    seeded = seeded_checkpoints.write()
    found = [(f"{name}, trained", name, TRAINED / name, *each) for name, each in DEMO.items()]
    found += [(f"{name}, seeded", name, seeded / name, *each) for name, each in SEEDED.items()]
    for name, folder in IMAGE_TO_IMAGE.items():
        title = f"{name}, {'trained' if folder else 'seeded'}, image to image"
        found.append((title, name, (folder or seeded) / name, ("image",), {"num_inference_steps": 30}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results.add_options(parser, "psnr")
    parser.add_argument("--seeds", type=int, default=20, help="images of each case [default: 20]")
    arguments = parser.parse_args()
    repository = WORK / "model_repository"
    shutil.rmtree(repository, ignore_errors=True)
    checkpoints = {name: checkpoint for _, name, checkpoint, *_ in cases()}
    for name, checkpoint in checkpoints.items():
        for numerics in ("exact", "fast"):
            add(repository, f"{name}_{numerics}", checkpoint, numerics)
    rows = []

    def compare(what: str, samples: dict[str, list[float]]) -> None:
        rows.append({"what": what, "samples": samples})
        for name, values in samples.items():
            print(f"{what}, {name}: {statistics.mean(values):.1f} dB, smallest {min(values):.1f} dB", flush=True)

    with (
        TritonServer(repository, WORK / "server.log") as server,
        grpcclient.InferenceServerClient(server.grpc_address) as client,
    ):
        for model in sorted(path.name for path in repository.iterdir()):
            client.load_model(model)
        for what, name, _, wanted, settings in cases():
            values = []
            for seed in range(arguments.seeds):
                exact, fast = (generate(client, f"{name}_{each}", seed, wanted, settings) for each in ("exact", "fast"))
                # Equal images have no finite value; 100 dB is above that of one byte that differs by 1.
                values.append(min(images.psnr(fast, exact), 100.0))
            compare(what, {"fast": values})
        for steps in sorted({steps for steps, _ in DEEP_CACHE}):
            settings = {"num_inference_steps": steps}
            without = [generate(client, "sd_base_fast", seed, (), settings) for seed in range(arguments.seeds)]
            samples = {}
            for interval in (interval for each, interval in DEEP_CACHE if each == steps):
                cached = settings | {"deep_cache": interval}
                samples[f"deep_cache {interval}"] = [
                    min(images.psnr(generate(client, "sd_base_fast", seed, (), cached), image), 100.0)
                    for seed, image in enumerate(without)
                ]
            compare(f"deep_cache, sd_base, {steps} steps", samples)
        version = client.get_server_metadata().version
    worst = min(min(row["samples"]["fast"]) for row in rows if "fast" in row["samples"])
    print(f"smallest of `fast` next to `exact`: {worst:.1f} dB")
    results.save(arguments, "psnr", {"checkpoint": "tiny", "seeds": arguments.seeds}, rows, server=version)
    if worst < 50:
        raise SystemExit("below 50 dB")


if __name__ == "__main__":
    main()

"""Generates images with stable-diffusion.cpp, and prints one JSON object.

    .venv-bench/bin/python benches/peer_stable_diffusion_cpp.py target/bench/checkpoints/full_size --side 256 --steps 4

The object has lists of seconds, one value for each image: `seconds` of the whole image, `step_s` of a step, `decode_s`
of the decoder. The load is not part of them. `whole.py` and `stable_diffusion_cpp_flags.py` run this program.

stable-diffusion.cpp reads one file with the tensors of the folder under `unet.`, `vae.` and `te.`. It has the shapes of
Stable Diffusion 1 and 2 only, so it cannot read the tiny checkpoint. `--check` demands that it computes what diffusers
computes: from the same noise, with Euler's sampler and an empty prompt, the images must differ by rounding only.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import time

import numpy as np
from cyllama import sd
from safetensors.torch import load_file, save_file

ONE_FILE = pathlib.Path(__file__).resolve().parents[1] / "target" / "bench" / "stable_diffusion_cpp"
COMPONENTS = {
    "unet": ("unet", "diffusion_pytorch_model.safetensors"),
    "vae": ("vae", "diffusion_pytorch_model.safetensors"),
    "te": ("text_encoder", "model.safetensors"),
}
# Flags of stable-diffusion.cpp. Types of weights that lose precision are no peers.
FLAGS = ("f16", "f32", "flash", "unet-direct", "vae-direct")
# The fastest of them: benches/stable_diffusion_cpp_flags.py.
BEST = "f32,flash"
PROMPT = "a photo of an astronaut riding a horse"
DECODED = re.compile(r"decode_first_stage completed, taking ([0-9.]+)s")
SAMPLED = re.compile(r"sampling completed, taking ([0-9.]+)s")
# In values of 0 to 255: the mean difference of two images that differ by rounding, with float16 operations.
TOLERANCE = 1.0


def one_file(checkpoint: pathlib.Path) -> pathlib.Path:
    """Writes all weights of a folder to one file, unless it is there; returns the file."""
    file = ONE_FILE / f"{checkpoint.name}.safetensors"
    if not file.exists():
        tensors = {}
        for prefix, path in COMPONENTS.items():
            for name, tensor in load_file(checkpoint.joinpath(*path)).items():
                tensors[f"{prefix}.{name}"] = tensor
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        save_file(tensors, partial)
        partial.rename(file)
    return file


def context(checkpoint: pathlib.Path, flags: list[str]) -> sd.SDContext:
    """Loads a checkpoint with some of FLAGS."""
    if unknown := set(flags) - set(FLAGS):
        raise ValueError(f"expected some of {', '.join(FLAGS)}, got {', '.join(unknown)}")
    parameters = sd.SDContextParams(model_path=str(one_file(checkpoint)))
    parameters.n_threads = len(os.sched_getaffinity(0))
    parameters.prediction = sd.Prediction.EPS
    # PyTorch's generator for the CPU.
    parameters.rng_type = parameters.sampler_rng_type = sd.RngType.CPU
    parameters.free_params_immediately = False
    if "f16" in flags or "f32" in flags:
        parameters.wtype = sd.SDType.F16 if "f16" in flags else sd.SDType.F32
    parameters.flash_attn = parameters.diffusion_flash_attn = "flash" in flags
    parameters.diffusion_conv_direct = "unet-direct" in flags
    parameters.vae_conv_direct = "vae-direct" in flags
    return sd.SDContext(parameters)


def generate(loaded: sd.SDContext, prompt: str, sampler: sd.SampleMethod, side: int, steps: int) -> np.ndarray:
    """Returns one image of height and width `side`, guidance 7.5, seed 0."""
    images = loaded.generate(
        prompt,
        negative_prompt="",
        width=side,
        height=side,
        seed=0,
        sample_steps=steps,
        cfg_scale=7.5,
        sample_method=sampler,
        scheduler=sd.Scheduler.DISCRETE,
    )
    return images[0].to_numpy()


def measure(loaded: sd.SDContext, arguments: argparse.Namespace, log: list[str]) -> dict[str, list[float]]:
    """Returns the seconds of each image and of its parts."""
    found = {"seconds": [], "step_s": [], "decode_s": []}
    for _ in range(arguments.images):
        log.clear()
        begin = time.perf_counter()
        generate(loaded, PROMPT, sd.SampleMethod.DPMPP2M, arguments.side, arguments.steps)
        found["seconds"].append(time.perf_counter() - begin)
        text = "".join(log)
        found["step_s"].append(float(SAMPLED.search(text)[1]) / arguments.steps)
        found["decode_s"].append(float(DECODED.search(text)[1]))
    return found


def check(loaded: sd.SDContext, arguments: argparse.Namespace) -> dict[str, float]:
    """Returns the mean and the largest difference of the pixels from diffusers.

    Raises SystemExit if the mean is above TOLERANCE.
    """
    import euler_reference

    got = generate(loaded, "", sd.SampleMethod.EULER, arguments.side, arguments.steps)
    expected = euler_reference.image(arguments.checkpoint, arguments.side, arguments.steps)
    differences = np.abs(got.astype(int) - expected.astype(int))
    if differences.mean() > TOLERANCE:
        sys.exit(f"stable-diffusion.cpp computes another image: mean difference {differences.mean():.1f} of 255")
    return {"mean": float(differences.mean()), "largest": float(differences.max()), "contrast": float(expected.std())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--side", type=int, default=512, help="height and width of the image in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--flags", default=BEST, help="some of " + ",".join(FLAGS))
    parser.add_argument("--check", action="store_true", help="only compare an image with one of diffusers")
    arguments = parser.parse_args()

    # The library prints its progress to standard output, which is for the result.
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    log = []
    sd.set_log_callback(lambda _level, text: log.append(text))
    begin = time.perf_counter()
    loaded = context(arguments.checkpoint, arguments.flags.split(","))
    load_s = time.perf_counter() - begin
    result = check(loaded, arguments) if arguments.check else measure(loaded, arguments, log)
    print(json.dumps({"load_s": load_s} | result), file=output, flush=True)


if __name__ == "__main__":
    main()

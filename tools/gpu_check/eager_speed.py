"""Measures the steps of the eager UNet and prints one JSON object: {"runs": [{"images": 1, "step_ms": 18.1, ...}]}.

A step is one of DDIM with guidance: one UNet call with two batch entries for each image, guidance, and the new latents.
`step_ms` is the median; the program waits for the device after each step. `step_ms` and `memory_used_bytes` are null if
the images do not fit into memory.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from eager_unet import EagerUNet

WARM_UP = 3
GUIDANCE = 7.5
TOKENS = 77


def step(unet, latents, text, timestep, alpha, alpha_before):
    """One step of DDIM with guidance."""
    doubled = torch.cat([latents] * 2)
    noise, noise_of_prompt = unet(doubled, timestep.expand(len(doubled)), text).chunk(2)
    noise = noise + GUIDANCE * (noise_of_prompt - noise)
    original = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    return alpha_before**0.5 * original + (1 - alpha_before) ** 0.5 * noise


@torch.inference_mode()
def measure(unet, images, arguments):
    """The times of the steps of one run, in milliseconds."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    generator = torch.Generator().manual_seed(0)
    shape = images, unet.config["out_channels"], arguments.height // 8, arguments.width // 8
    latents = torch.randn(shape, generator=generator).to(device, dtype)
    text = torch.randn(2 * images, TOKENS, unet.config["cross_attention_dim"], generator=generator).to(device, dtype)
    count = arguments.steps + WARM_UP
    timesteps = torch.linspace(981, 1, count, device=device).round().long()
    alphas = torch.linspace(0.01, 0.99, count + 1).tolist()
    times = []
    for index in range(count):
        begin = time.perf_counter()
        latents = step(unet, latents, text, timesteps[index], alphas[index], alphas[index + 1])
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - begin) * 1000)
    if not latents.isfinite().all():
        raise ValueError("the latents are not finite")
    return times[WARM_UP:]


def run(unet, images, arguments):
    """The result for one number of images."""
    device = torch.device(arguments.device)
    memory = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    try:
        step_ms = statistics.median(measure(unet, images, arguments))
    except torch.OutOfMemoryError:
        return {"images": images, "step_ms": None, "memory_used_bytes": None}
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device)
    return {"images": images, "step_ms": step_ms, "memory_used_bytes": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkpoint of Stable Diffusion 1 or 2")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--images", default="1,2,4,8")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    unet = EagerUNet.load(arguments.folder / "unet", arguments.device, getattr(torch, arguments.dtype))
    runs = [run(unet, int(images), arguments) for images in arguments.images.split(",")]
    print(json.dumps({"runs": runs}))


if __name__ == "__main__":
    main()

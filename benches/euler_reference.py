"""Generates an image with the parts of diffusers, as stable-diffusion.cpp does: Euler's sampler, an empty prompt."""

import pathlib

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from transformers import CLIPTextModel

from peer_diffusers import guided, load

# The empty prompt in the tokens of Stable Diffusion 2: start, end, padding. stable-diffusion.cpp has its own tokenizer.
EMPTY = [49406, 49407] + [0] * 75


@torch.inference_mode()
def image(checkpoint: pathlib.Path, side: int, steps: int) -> np.ndarray:
    """Returns an image of height and width `side`, guidance 7.5, seed 0, as bytes."""
    encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", torch_dtype=torch.float32)
    text = encoder(torch.tensor([EMPTY]))[0]
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace"
    )
    scheduler.set_timesteps(steps)
    noise = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    latents = noise * scheduler.init_noise_sigma
    unet = load(checkpoint, "unet")
    for timestep in scheduler.timesteps:
        entries = scheduler.scale_model_input(torch.cat([latents] * 2), timestep)
        latents = scheduler.step(guided(unet(entries, timestep, torch.cat([text] * 2))), timestep, latents).prev_sample
    del unet
    decoded = load(checkpoint, "vae")(latents)
    return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()

"""Writes the four Hugging Face folders, float16, with diffusers itself."""

import shutil
import sys
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
)

import depth
import unets
import upscaler

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
from linked_components import link_equal_components

# The settings of public folders, except the betas.
DDIM = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")
# The noise that DDPM adds at each step lets a small network correct errors of the step before.
DDPM = dict(clip_sample=False, steps_offset=1, prediction_type="v_prediction")


def write(out, parts):
    """Writes sd_base, sd_depth, sd_inpaint and sd_upscale below `out`; model cards that lie there stay.

    Components that several folders share are stored once; the other folders link to them.
    """
    parts = {
        name: part.to(torch.float16) if isinstance(part, torch.nn.Module) else part for name, part in parts.items()
    }
    shared = {name: parts[name] for name in ("tokenizer", "text_encoder", "vae")}
    scheduler = DDPMScheduler(**unets.BETAS, **DDPM, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    unchecked = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipelines = {
        "sd_base": StableDiffusionPipeline(**shared, unet=parts["unet_text"], scheduler=scheduler, **unchecked),
        "sd_depth": StableDiffusionDepth2ImgPipeline(
            **shared,
            unet=parts["unet_depth"],
            scheduler=scheduler,
            depth_estimator=parts["depth_estimator"],
            feature_extractor=depth.processor(),
        ),
        "sd_inpaint": StableDiffusionInpaintPipeline(
            **shared, unet=parts["unet_inpaint"], scheduler=scheduler, **unchecked
        ),
        "sd_upscale": StableDiffusionUpscalePipeline(
            **{**shared, "vae": parts["vae_f4"]},
            unet=parts["unet_upscale"],
            scheduler=DDIMScheduler(**upscaler.BETAS, **DDIM),
            low_res_scheduler=DDPMScheduler(**upscaler.BETAS, variance_type="fixed_small"),
            max_noise_level=upscaler.MAX_NOISE_LEVEL,
        ),
    }
    for name, pipeline in pipelines.items():
        folder = out / name
        for part in folder.glob("*/"):
            part.unlink() if part.is_symlink() else shutil.rmtree(part)
        pipeline.save_pretrained(folder, safe_serialization=True)
    link_equal_components([out / name for name in pipelines])

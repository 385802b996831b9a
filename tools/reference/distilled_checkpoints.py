"""Families for a few steps without guidance. Most of their components are links to other families."""

import filecmp
import shutil

from diffusers import EulerDiscreteScheduler, LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline

# Which parts of a family are links, and to which family's.
LINKS = {
    "sd1_safety": ("sd1", ("text_encoder", "tokenizer", "unet", "vae")),
    "lcm": ("sd1", ("feature_extractor", "text_encoder", "tokenizer", "vae")),
    "sd_turbo": ("sd2_base", ("text_encoder", "tokenizer", "unet", "vae")),
}


def lcm(base, unet, betas):
    """Makes SimianLuo/LCM_Dreamshaper_v7: Stable Diffusion 1 with a UNet that has the guidance scale as an input."""
    return LatentConsistencyModelPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=unet,
        scheduler=LCMScheduler.from_config(
            dict(betas, original_inference_steps=50, clip_sample=False, set_alpha_to_one=True, steps_offset=0)
        ),
        safety_checker=None,
        feature_extractor=base.feature_extractor,
        requires_safety_checker=False,
    )


def sd_turbo(base, betas):
    """Makes sd-turbo: the shape of 2-1-base, another scheduler, and a required safety checker that is null."""
    return StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=EulerDiscreteScheduler.from_config(
            dict(
                betas,
                timestep_spacing="trailing",
                prediction_type="epsilon",
                interpolation_type="linear",
                timestep_type="discrete",
                use_karras_sigmas=False,
                steps_offset=1,
                sample_max_value=1.0,
                # These are not arguments of this class; the public file has them for other schedulers.
                set_alpha_to_one=False,
                skip_prk_steps=True,
                clip_sample=False,
            )
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=True,
    )


def link_parts(out, name):
    """Puts relative links in the place of parts that another family has too, byte for byte."""
    base, parts = LINKS[name]
    for part in parts:
        own, theirs = out / name / part, out / base / part
        comparison = filecmp.dircmp(own, theirs, ignore=[])
        _, different, unreadable = filecmp.cmpfiles(own, theirs, comparison.common_files, shallow=False)
        if comparison.left_only or comparison.right_only or different or unreadable:
            raise SystemExit(f"{own} is not {theirs}: write {base} first, or not as a link")
        shutil.rmtree(own)
        own.symlink_to(f"../{base}/{part}", target_is_directory=True)

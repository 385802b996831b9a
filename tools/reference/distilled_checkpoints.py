"""Families for a few steps without guidance. They share most components with other families."""

from diffusers import EulerDiscreteScheduler, LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline


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

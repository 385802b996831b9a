"""Tiny folders of Stable Diffusion XL: two text encoders, a UNet with sizes as inputs, a VAE computed in float32."""

from diffusers import EulerDiscreteScheduler, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from seeded_weights import fill

TEXT_2_HIDDEN = 40
# Size of the pooled prompt. The public model has one size for all three.
PROJECTION = 24
# Size of the sinusoids of each of the six numbers of a size; 256 in the public model.
TIME_EMBED = 8
UNET = dict(
    sample_size=8,
    block_out_channels=(16, 16, 24),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=[1, 2, 3],
    attention_head_dim=[2, 2, 3],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=TIME_EMBED,
    projection_class_embeddings_input_dim=PROJECTION + 6 * TIME_EMBED,
)


def text_encoder_2(seed, vocab_size, gains):
    """Makes the text encoder with a projection, OpenCLIP's bigG in the public model."""
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_2_HIDDEN,
        intermediate_size=4 * TEXT_2_HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_act="gelu",
        max_position_embeddings=77,
        layer_norm_eps=1e-5,
        projection_dim=PROJECTION,
        # As in the public config: the pooled state is that of the largest id, the end of the text.
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return fill(CLIPTextModelWithProjection(config), seed, gains)


def scheduler(betas):
    """Makes the scheduler of stable-diffusion-xl-base-1.0."""
    return EulerDiscreteScheduler.from_config(
        dict(
            betas,
            interpolation_type="linear",
            prediction_type="epsilon",
            sample_max_value=1.0,
            steps_offset=1,
            timestep_spacing="leading",
            use_karras_sigmas=False,
            # Not arguments of this class; the public file has them for other schedulers.
            clip_sample=False,
            set_alpha_to_one=False,
            skip_prk_steps=True,
        )
    )


def base(parts, second, unet, betas):
    """Makes stable-diffusion-xl-base-1.0 from `parts` (both of the first text encoder, and the VAE) and `second`."""
    return StableDiffusionXLPipeline(
        **parts,
        **second,
        unet=unet,
        scheduler=scheduler(betas),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def inpaint(base, unet, betas):
    """Makes stable-diffusion-xl-1.0-inpainting-0.1: the base with a UNet that takes the mask and the masked image."""
    return StableDiffusionXLInpaintPipeline(
        **{name: part for name, part in base.components.items() if name not in ("unet", "scheduler")},
        unet=unet,
        scheduler=scheduler(betas),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )

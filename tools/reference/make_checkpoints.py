#!/usr/bin/env python3
"""Writes what the tiny Hugging Face diffusers folders of the tests and benches are generated from.

Each family keeps the block types, switches and scheduler settings of its public checkpoint, with
a few channels instead of hundreds and seeded random float16 weights. diffusers and transformers write the
folders themselves, so the layout is the public one. A recipe then replaces each file of weights; seeded_checkpoints.py
generates the file from it.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging as diffusers_logging
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

import distilled_checkpoints as distilled
import tiny_safety
import xl_checkpoints as xl
from seeded_weights import fill, replace_by_recipe
from tiny_tokenizer import write_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import seeded_checkpoints
from linked_components import link_equal_components

# ---------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------

TEXT_HIDDEN = 32

# Found by measurement (see `measure`): the text must matter, the image must fill the byte range without clipping,
# and rounding errors must not grow on their way through the steps.
TEXT_GAINS = {"position_embedding": 0.3, "out_proj": 1.5, "fc2": 1.5}
UNET_GAINS = {"attn2.to_q": 1.5, "attn2.to_k": 1.5, "attn2.to_out": 3.0, "conv_out": 1.5, "add_embedding": 1.5}
TINY_GAINS = {"weight": 1.4, "decoder.layers.13": 0.35}
VAE_GAINS = {"post_quant_conv": 0.1, "decoder.conv_out": 0.8, "quant_conv": 1.0}


def text_encoder(seed, hidden_act, layers, vocab_size):
    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=TEXT_HIDDEN,
        intermediate_size=4 * TEXT_HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_act=hidden_act,
        max_position_embeddings=77,
        layer_norm_eps=1e-5,
        projection_dim=TEXT_HIDDEN // 2,
        # The public configs keep these three of an older tokenizer; nothing may rely on them.
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    return fill(CLIPTextModel(config), seed, TEXT_GAINS)


def unet(seed, **config):
    shape = dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 16, 24, 24),
        layers_per_block=2,
        cross_attention_dim=TEXT_HIDDEN,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    return fill(UNet2DConditionModel(**{**shape, **config}), seed, UNET_GAINS)


def vae(seed, channels, sample_size, scaling_factor):
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
    )
    return fill(model, seed, VAE_GAINS)


def vae_tiny(seed):
    model = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(2, 1, 1, 1),
    )
    return fill(model, seed, TINY_GAINS, {"decoder.layers.13.bias": [0.6, 0.8, 1.2]})


def depth_estimator(seed):
    """A DPT-hybrid: BiT backbone, four transformer layers, 64 x 64 pixels instead of 384 x 384."""
    backbone = {
        "model_type": "bit",
        "depths": [1, 1, 2],
        "embedding_size": 8,
        "hidden_sizes": [32, 32, 48, 64],
        "num_groups": 4,
        "hidden_act": "relu",
        "layer_type": "bottleneck",
        "global_padding": "SAME",
        "embedding_dynamic_padding": True,
        "drop_path_rate": 0.0,
        "out_features": ["stage1", "stage2", "stage3"],
    }
    config = DPTConfig(
        is_hybrid=True,
        backbone_config=backbone,
        backbone_featmap_shape=[1, 48, 4, 4],
        backbone_out_indices=[0, 1, 2, 3],
        neck_ignore_stages=[0, 1],
        neck_hidden_sizes=[32, 32, 24, 24],
        reassemble_factors=[1, 1, 1, 0.5],
        fusion_hidden_size=16,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        readout_type="project",
        qkv_bias=True,
    )
    return fill(DPTForDepthEstimation(config), seed, {"position_embeddings": 0.3, "head.head.4": 4.0})


def image_processor(side=224):
    return CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_convert_rgb=True, resample=3
    )


# ---------------------------------------------------------------------------------------------------------------
# Schedulers, with the settings of the public repositories
# ---------------------------------------------------------------------------------------------------------------

SD_BETAS = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
X4_BETAS = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="scaled_linear")


def pndm():
    # PNDM has no clip_sample argument; the public files carry it for schedulers that are made from them.
    return PNDMScheduler.from_config(
        dict(SD_BETAS, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False, clip_sample=False)
    )


def ddim_v(betas):
    return DDIMScheduler.from_config(
        dict(
            betas,
            steps_offset=1,
            set_alpha_to_one=False,
            clip_sample=False,
            skip_prk_steps=True,
            prediction_type="v_prediction",
        )
    )


def ddpm_low_res():
    return DDPMScheduler.from_config(dict(X4_BETAS, clip_sample=True, variance_type="fixed_small"))


# ---------------------------------------------------------------------------------------------------------------
# Families
# ---------------------------------------------------------------------------------------------------------------

SD2_UNET = dict(attention_head_dim=[2, 2, 3, 3], use_linear_projection=True)


def load_tokenizer(folder, pad_token):
    vocab_size = write_tokenizer(folder, pad_token)
    return CLIPTokenizer.from_pretrained(folder), vocab_size


def sd1_parts(work):
    tokenizer, vocab_size = load_tokenizer(work / "tokenizer", "<|endoftext|>")
    return dict(
        vae=vae("sd1/vae", (8, 16, 16, 16), 64, 0.18215),
        text_encoder=text_encoder("sd1/text_encoder", "quick_gelu", 3, vocab_size),
        tokenizer=tokenizer,
        unet=unet("sd1/unet", attention_head_dim=8),
        scheduler=pndm(),
    )


def sd1(work):
    return StableDiffusionPipeline(
        **sd1_parts(work),
        safety_checker=None,
        feature_extractor=image_processor(),
        requires_safety_checker=False,
    )


def sd1_safety(work):
    return StableDiffusionPipeline(
        **sd1_parts(work),
        safety_checker=tiny_safety.safety_checker("sd1_safety/safety_checker"),
        feature_extractor=image_processor(tiny_safety.IMAGE_SIZE),
        requires_safety_checker=True,
    )


def sd2_parts(work):
    """What every second generation family shares byte for byte: text encoder, tokenizer and the factor 8 VAE."""
    tokenizer, vocab_size = load_tokenizer(work / "tokenizer", "!")
    return dict(
        text_encoder=text_encoder("sd2/text_encoder", "gelu", 4, vocab_size),
        tokenizer=tokenizer,
        vae=vae("sd2/vae", (8, 16, 16, 16), 96, 0.18215),
    )


def sd2_base(work):
    return StableDiffusionPipeline(
        **sd2_parts(work),
        unet=unet("sd2_base/unet", **SD2_UNET),
        scheduler=pndm(),
        safety_checker=None,
        feature_extractor=image_processor(),
        requires_safety_checker=False,
    )


def sd2_768v(work):
    return StableDiffusionPipeline(
        **sd2_parts(work),
        unet=unet("sd2_768v/unet", sample_size=12, upcast_attention=True, **SD2_UNET),
        scheduler=ddim_v(SD_BETAS),
        safety_checker=None,
        feature_extractor=image_processor(),
        requires_safety_checker=False,
    )


def sd2_depth(work):
    return StableDiffusionDepth2ImgPipeline(
        **sd2_parts(work),
        unet=unet("sd2_depth/unet", in_channels=5, **SD2_UNET),
        scheduler=pndm(),
        depth_estimator=depth_estimator("sd2_depth/depth_estimator"),
        feature_extractor=DPTImageProcessor(
            do_resize=True,
            size={"height": 64, "width": 64},
            keep_aspect_ratio=False,
            ensure_multiple_of=1,
            resample=2,
            do_rescale=True,
            rescale_factor=1 / 255,
            do_normalize=True,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
    )


def sd2_inpaint(work):
    return StableDiffusionInpaintPipeline(
        **sd2_parts(work),
        unet=unet("sd2_inpaint/unet", in_channels=9, **SD2_UNET),
        scheduler=pndm(),
        safety_checker=None,
        feature_extractor=image_processor(),
        requires_safety_checker=False,
    )


def x4_upscaler(work):
    parts = sd2_parts(work)
    parts["vae"] = vae("x4_upscaler/vae", (8, 16, 16), 32, 0.08333)
    return StableDiffusionUpscalePipeline(
        **parts,
        unet=unet(
            "x4_upscaler/unet",
            sample_size=16,
            in_channels=7,
            block_out_channels=(16, 16, 24, 32),
            attention_head_dim=8,
            use_linear_projection=True,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            only_cross_attention=(True, True, True, False),
            num_class_embeds=1000,
        ),
        low_res_scheduler=ddpm_low_res(),
        scheduler=ddim_v(X4_BETAS),
        max_noise_level=350,
    )


def lcm(work):
    return distilled.lcm(sd1(work), unet("lcm/unet", attention_head_dim=8, time_cond_proj_dim=256), SD_BETAS)


def sd_turbo(work):
    return distilled.sd_turbo(sd2_base(work), SD_BETAS)


def xl_unet():
    return dict(xl.UNET, cross_attention_dim=TEXT_HIDDEN + xl.TEXT_2_HIDDEN)


def sdxl_base(work):
    tokenizer, vocab_size = load_tokenizer(work / "tokenizer", "<|endoftext|>")
    tokenizer_2, _ = load_tokenizer(work / "tokenizer_2", "!")
    parts = dict(
        text_encoder=text_encoder("sdxl/text_encoder", "quick_gelu", 3, vocab_size),
        tokenizer=tokenizer,
        vae=vae("sdxl/vae", (8, 16, 16, 16), 64, 0.13025),
    )
    second = dict(
        text_encoder_2=xl.text_encoder_2("sdxl/text_encoder_2", vocab_size, TEXT_GAINS),
        tokenizer_2=tokenizer_2,
    )
    return xl.base(parts, second, unet("sdxl_base/unet", **xl_unet()), SD_BETAS)


def sdxl_inpaint(work):
    return xl.inpaint(sdxl_base(work), unet("sdxl_inpaint/unet", **xl_unet(), in_channels=9), SD_BETAS)


# A family links to components of families before it.
FAMILIES = {
    "sd1": sd1,
    "sd1_safety": sd1_safety,
    "sd2_base": sd2_base,
    "sd2_768v": sd2_768v,
    "sd2_depth": sd2_depth,
    "sd2_inpaint": sd2_inpaint,
    "x4_upscaler": x4_upscaler,
    "lcm": lcm,
    "sd_turbo": sd_turbo,
    "sd1_tiny": sd1,
    "sdxl_base": sdxl_base,
    "sdxl_inpaint": sdxl_inpaint,
}

# Components that the pipeline does not have.
FURTHER = {"sd1_tiny": {"vae_tiny": lambda: vae_tiny("sd1_tiny/vae_tiny")}}


def write(name, out):
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    work = out / f".{name}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        pipeline = FAMILIES[name](work)
        pipeline.save_pretrained(folder, safe_serialization=True)
        further = {part: make() for part, make in FURTHER.get(name, {}).items()}
        for part, model in further.items():
            model.save_pretrained(folder / part, safe_serialization=True)
        # Saving rewrites the two tokenizer settings files in the newer form, in which they agree with each other. The
        # public SD2 folders hold the older form, in which the padding token depends on who wins.
        if not name.startswith(("sd1", "lcm")):
            for tokenizer in folder.glob("tokenizer*"):
                for file in ("special_tokens_map.json", "tokenizer_config.json"):
                    shutil.copyfile(work / tokenizer.name / file, tokenizer / file)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for file in folder.rglob("*.json"):
        drop_source_path(file)
    for file in folder.rglob("*.safetensors"):
        part = file.parent.name
        replace_by_recipe(file, further[part] if part in further else pipeline.components[part])


def drop_source_path(file):
    """Removes the build folder's name, which would differ from one machine to the next."""
    content = json.loads(file.read_text())
    if isinstance(content, dict):
        kept = {k: v for k, v in content.items() if k not in ("_name_or_path", "name_or_path")}
        if kept != content:
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------------------------
# Are the images useful for tests?
# ---------------------------------------------------------------------------------------------------------------

CAT = "a photo of a cat sitting on a red chair"
SEA = "an oil painting of a stormy sea at night, highly detailed"


def example_image(height, width):
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [127 + 100 * np.sin(x / 7), 127 + 100 * np.cos(y / 9), (x * 5 + y * 3) % 256]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def call(name, pipeline, prompt, seed=0, **arguments):
    """One request with the pipeline's defaults; returns u8 [H, W, 3]."""
    from PIL import Image

    generator = torch.Generator("cpu").manual_seed(seed)
    if name == "sd2_depth":
        arguments["image"] = Image.fromarray(example_image(64, 64))
    elif name in ("sd2_inpaint", "sdxl_inpaint"):
        arguments["image"] = Image.fromarray(example_image(64, 64))
        mask = np.zeros((64, 64), np.uint8)
        mask[16:48, 16:48] = 255
        arguments["mask_image"] = Image.fromarray(mask)
    elif name == "x4_upscaler":
        arguments["image"] = Image.fromarray(example_image(16, 16))
    images = pipeline(prompt=prompt, generator=generator, **arguments).images
    return np.array(images[0])


def measure(name, out):
    """Prints the figures that `fill`'s gains are tuned for and returns whether all of them are in bounds."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(out / name, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def difference(a, b):
        return float(np.abs(a.astype(int) - b.astype(int)).mean())

    cat = call(name, pipeline, CAT)
    sea = call(name, pipeline, SEA)
    plain = call(name, pipeline, CAT, guidance_scale=1.0)
    seed = call(name, pipeline, CAT, seed=1)
    with torch.backends.mkldnn.flags(enabled=False):
        other = call(name, pipeline, CAT)
    off = np.abs(cat.astype(int) - other.astype(int))
    std = cat.reshape(-1, 3).std(axis=0)
    saturated = float(((cat == 0) | (cat == 255)).mean())
    prompt_difference, guidance_difference = difference(cat, sea), difference(cat, plain)
    ok = std.min() > 25 and saturated < 0.15 and prompt_difference > 5 and guidance_difference > 5
    print(
        f"{name:12} {cat.shape[0]}x{cat.shape[1]} std {std.round(1)} saturated {saturated:.1%}"
        f" prompt {prompt_difference:.1f} guidance {guidance_difference:.1f} seed {difference(cat, seed):.1f}"
        f" other kernels: max {off.max()} equal {(off == 0).mean():.2%} {'ok' if ok else 'OUT OF BOUNDS'}"
    )
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=seeded_checkpoints.DATA)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--no-measure", action="store_true", help="write the folders without generating images")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers_logging.set_verbosity_error()
    for name in arguments.only:
        write(name, arguments.out)
    link_equal_components([arguments.out / name for name in FAMILIES if (arguments.out / name).is_dir()])
    with tempfile.TemporaryDirectory() as work:
        checkpoints = seeded_checkpoints.write(Path(work, "checkpoints"), arguments.out)
        report(checkpoints)
        if not arguments.no_measure:
            # A family that links its UNet generates the same images as the family of the link.
            own = [name for name in arguments.only if not (checkpoints / name / "unet").is_symlink()]
            results = [measure(name, checkpoints) for name in own]
            if not all(results):
                raise SystemExit("the images of a family are out of bounds: adjust the gains")


def report(out):
    """Prints size and digest of each family, without the components that it borrows."""
    size = 0
    for folder in sorted(path for path in out.iterdir() if path.name in FAMILIES):
        own = folder.resolve()
        files = sorted(path for path in folder.rglob("*") if path.is_file() and own in path.resolve().parents)
        total = sum(path.stat().st_size for path in files)
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
        print(f"{folder.name:12} {total:9,} bytes  sha256 {digest[:16]}")
        size += total
    print(f"{'together':12} {size:9,} bytes")


if __name__ == "__main__":
    main()

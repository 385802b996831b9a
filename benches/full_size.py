"""Writes a diffusers folder with the shapes of Stable Diffusion 2.1 and random float16 weights (2.6 GB).

    .venv-reference/bin/python benches/full_size.py target/bench/sd21

Shapes and settings are those of the public checkpoint stabilityai/stable-diffusion-2-1-base. Tokenizer and scheduler
are copied from a tiny test checkpoint. The weights are noise, which makes no difference for load time and memory.
"""

import json
import pathlib
import shutil
import sys

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))
import seeded_checkpoints

TINY = seeded_checkpoints.write() / "sd2_base"
UNET = dict(
    sample_size=64,
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    cross_attention_dim=1024,
    attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True,
)
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
    latent_channels=4,
    sample_size=512,
)
TEXT = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    projection_dim=512,
)


def write(folder, stem, model, seed):
    """Writes the config of a model, and noise in the shapes of its weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (torch.randn(value.shape, generator=generator) * 0.02).half()
        for name, value in model.state_dict().items()
        if value.is_floating_point()
    }
    folder.mkdir(parents=True, exist_ok=True)
    model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def main():
    out = pathlib.Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(TINY, out, ignore=shutil.ignore_patterns("*.safetensors"))
    vocabulary = json.loads((TINY / "text_encoder" / "config.json").read_text())["vocab_size"]
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE)
        text = CLIPTextModel(CLIPTextConfig(vocab_size=max(vocabulary, 49408), **TEXT))
    write(out / "unet", "diffusion_pytorch_model", unet, 1)
    write(out / "vae", "diffusion_pytorch_model", vae, 2)
    write(out / "text_encoder", "model", text, 3)


if __name__ == "__main__":
    main()
